"""The error of each layer, read from the caches of real files in the real runtime, against the eager model that they were made of."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatlm.convert.decoder import stamp_decoder
from flatlm.convert.link import link_and_write
from flatlm.convert.signatures import signature_specs
from flatlm.convert.weights import WeightLayout
from flatlm.errors import RuntimeFileError, TextError
from flatlm.generative.layer_errors import compare_layers, text_ids
from flatlm.generative.runner import Runner
from flatlm.layers.config import CacheDtype
from flatlm.layers.kv_cache import CacheGeometry
from flatlm.layers.model import Decoder
from flatlm.quantize.recipes import RECIPES
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from tests.models import InMemory, export_fast, random_decoder, tiny_config

LENGTH = 48
SPECS = signature_specs((4, 16), prefill_logits=False)
IDS = np.random.default_rng(5).integers(0, 96, 41).tolist()
ASSETS = Path(__file__).resolve().parents[2] / "flatlm" / "assets"


@pytest.fixture(scope="module")
def stamped() -> Any:
    """A model of 4 layers, compiled once; its weights are still names."""
    model = tiny()
    return stamp_decoder(model.config, model.geometry, SPECS)


def tiny() -> Decoder:
    return random_decoder(tiny_config(layers=4), cache_length=LENGTH, longest_step=16)


def opened(stamped: Any, path: Path, model: Decoder, recipe: str = "none") -> Runner:
    """The tiny model's file, with this model's weights."""
    layout = WeightLayout({name: InMemory(parameter.data) for name, parameter in model.named_parameters()}, RECIPES[recipe])
    with path.open("w+b") as file:
        link_and_write(copy.deepcopy(stamped), layout, file.fileno())
    return Runner.open(path, threads=1)


def whole(model: Decoder) -> Decoder:
    """The same weights with float32 caches of the whole context: what `build_model` gives."""
    eager = Decoder(model.config, CacheGeometry(model.geometry.length)).eval().requires_grad_(False)
    eager.load_state_dict(model.state_dict())
    return eager


@pytest.mark.parametrize(
    ("cache", "window", "least", "most"),
    [(CacheDtype.FLOAT16, None, 1e-4, 3e-4), (CacheDtype.INT8, 5, 3e-3, 5e-3)],
)
def test_a_healthy_file_s_layers_are_as_near_as_its_caches_allow(tmp_path, cache, least, most, window):
    model = random_decoder(tiny_config(layers=4, window=window), cache_length=LENGTH, longest_step=16, cache=cache)
    with Runner.open(export_fast(model, SPECS[1:], tmp_path / "m.tflite"), threads=1) as runner:
        slots = [runner.file.decode.caches[f"kv_cache_k_{layer}"].shape[2] for layer in range(4)]
        assert slots == ([32, LENGTH] * 2 if window else [LENGTH] * 4)
        found = compare_layers(runner, whole(model), IDS)
    assert [layer for layer, _, _ in found.layers] == [0, 1, 2, 3]
    assert found.tokens == len(IDS)
    assert all(least <= error < most for error in found.layers[0][1:]), "what one rounding of the type costs"
    assert all(error < 10 * most for layer in found.layers for error in layer[1:]), found.layers
    assert found.logits_error < 10 * most
    assert found.to_dict() == {"tokens": 41, "layers": found.layers, "logits_error": found.logits_error}


def test_quantized_weights_show_in_every_layer_and_more_the_deeper(stamped, tmp_path):
    model = tiny()
    with opened(stamped, tmp_path / "m.tflite", model, "dynamic_int8") as runner:
        found = compare_layers(runner, whole(model), IDS)
    assert all(1e-3 < error < 0.1 for layer in found.layers for error in layer[1:])
    assert found.layers[3][1] > found.layers[0][1]


@pytest.mark.parametrize(
    ("weight", "last_right"),
    [
        ("blocks.2.attention.qkv.weight", 1),  # its own keys and values
        ("blocks.1.attention.output.weight", 1),  # those of the next layer
        ("blocks.1.feed_forward.down.weight", 1),
        ("blocks.3.feed_forward.down.weight", 3),  # the logits only
        ("final_norm.weight", 3),
    ],
)
def test_a_damaged_layer_is_where_the_error_begins(stamped, tmp_path, weight, last_right):
    model = tiny()
    right = whole(model)
    dict(model.named_parameters())[weight].data *= 1.25
    with opened(stamped, tmp_path / "m.tflite", model) as runner:
        found = compare_layers(runner, right, IDS)
    for layer, keys, values in found.layers:
        assert (keys < 2e-6 and values < 2e-6) if layer <= last_right else (keys > 1e-3 and values > 1e-3), found.layers
    assert found.logits_error > 1e-3


def test_values_alone_are_told_from_keys(stamped, tmp_path):
    model = tiny()
    right = whole(model)
    model.blocks[1].attention.qkv.weight.data[-16:] *= 1.5  # the rows of 2 heads' values
    with opened(stamped, tmp_path / "m.tflite", model) as runner:
        found = compare_layers(runner, right, IDS)
    assert found.layers[1][1] < 2e-6
    assert found.layers[1][2] == pytest.approx(0.5, abs=1e-4)


def test_what_overflows_is_an_infinite_error(stamped, tmp_path):
    model = tiny()
    right = whole(model)
    model.blocks[1].attention_norm.weight.data[:] = 1e38
    with opened(stamped, tmp_path / "m.tflite", model) as runner:
        found = compare_layers(runner, right, IDS)
    assert found.layers[0][1] < 2e-6
    assert found.layers[1][1] == float("inf") and found.logits_error == float("inf")


def test_another_model_s_checkpoint_and_too_short_a_text_are_said(stamped, tmp_path):
    model = tiny()
    with opened(stamped, tmp_path / "m.tflite", model) as runner:
        with pytest.raises(RuntimeFileError, match=r"4 layers with caches, the checkpoint 2: give the checkpoint"):
            compare_layers(runner, random_decoder(tiny_config(layers=2), cache_length=LENGTH), IDS)
        with pytest.raises(RuntimeFileError, match=r"layer 0 has 2 heads of 8 in its cache, the checkpoint 4 of 8"):
            compare_layers(runner, random_decoder(tiny_config(layers=4, kv_heads=4), cache_length=LENGTH), IDS)
        with pytest.raises(RuntimeFileError, match="a vocabulary of 96, the checkpoint one of 90"):
            compare_layers(runner, random_decoder(tiny_config(layers=4, vocab=90), cache_length=LENGTH), [1] * 8)
        with pytest.raises(TextError, match="1 tokens are too few"):
            compare_layers(runner, model, [1])


def test_text_is_cut_to_the_tokens_asked_for():
    ids = text_ids(Tokenizer.load(ASSETS / "demo_model"), ["Once upon a time", "there was a cat"], tokens=6)
    assert len(ids) == 6
