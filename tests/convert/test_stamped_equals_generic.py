"""The stamped file against the generic path's file, and against the eager model, over a grid of shapes."""

import itertools

import numpy as np
import pytest
import torch

from flatlm.convert.decoder import WholeDecoder
from flatlm.convert.generic import Signatures as GenericSignatures
from flatlm.convert.signatures import signature_specs
from tests.models import Signatures, export_fast, largest_difference, random_decoder, random_inputs, tiny_config

# Every number of layers with every kind of heads, with every kind of head, and every two kinds together.
GRID = [(layers, kv_heads, (layers + kv_heads // 2 + layers // 3) % 2 == 0) for layers in (1, 2, 3, 4) for kv_heads in (2, 4)]
PREFILLS = (3, 8)


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "kv_heads", "tied"), GRID)
def test_stamped_file_equals_the_generic_paths_file(layers: int, kv_heads: int, tied: bool, tmp_path) -> None:
    model = random_decoder(tiny_config(layers=layers, kv_heads=kv_heads, tied=tied, bias=layers == 2, plain=layers == 3), seed=layers)
    specs = signature_specs(PREFILLS, prefill_logits=layers % 2 == 0)
    stamped = Signatures(export_fast(model, specs, tmp_path / "stamped.tflite"))
    builder = GenericSignatures()
    for spec in specs:
        whole = WholeDecoder(model, spec)
        builder = builder.signature(spec.name, whole, sample_kwargs=whole.sample_inputs())
    builder.convert().export(tmp_path / "generic.tflite")
    generic = Signatures(tmp_path / "generic.tflite")
    for spec, start in itertools.product(specs, (0, 5)):
        inputs = random_inputs(model, spec.tokens, start=start)
        got, expected = stamped.run(spec.name, inputs), generic.run(spec.name, inputs)
        assert largest_difference(got, expected) <= 1e-5, (spec.name, start)
        eager = WholeDecoder(model, spec)(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        assert largest_difference(got, {name: value.numpy() for name, value in eager.items()}) <= 1e-5, (spec.name, start)


def test_one_block_kind_is_compiled_once_and_stamped_for_every_layer(tmp_path) -> None:
    """What each layer computes depends on that layer's own weights: a swap of two layers' weights is seen."""
    specs = signature_specs((4,), prefill_logits=True)
    model = random_decoder(tiny_config(layers=3))
    inputs = random_inputs(model, 4, start=0)
    before = Signatures(export_fast(model, specs, tmp_path / "a.tflite")).run("prefill_4", inputs)
    model.blocks[0], model.blocks[2] = model.blocks[2], model.blocks[0]
    after = Signatures(export_fast(model, specs, tmp_path / "b.tflite")).run("prefill_4", inputs)
    eager = WholeDecoder(model, specs[0])(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    assert float(np.abs(before["logits"] - after["logits"]).max()) > 0.1
    assert largest_difference(after, {name: value.numpy() for name, value in eager.items()}) <= 1e-5
