"""A recipe's file computes with exactly the weights that its schemes decode to: the integers in it are the encoder's."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flatlm.convert.decoder import WholeDecoder
from flatlm.convert.signatures import signature_specs
from flatlm.quantize.encode import decode, encode
from flatlm.quantize.recipes import Recipe, get_recipe
from tests.models import Signatures, export_fast, random_decoder, random_inputs, tiny_config

# Where products are computed in float the file is the decoded model, to rounding. Where activations are quantized as they come, each
# of some ten products adds their rounding, about 1 % of a standard deviation.
MIXED = Recipe.mixed(
    "mixed", "dynamic_int4_block32", {"*.attention.qkv.*": "dynamic_int8", "lm_head.*": "float16", "embedding.*": "float32"}
)
CASES = {
    "none": 1e-5,
    "fp16": 1e-5,
    "weight_only_int8": 1e-4,
    "dynamic_int8": 0.06,
    "dynamic_int4_block32": 0.06,
    "dynamic_int4_channel": 0.06,
    MIXED: 0.06,
}


@pytest.mark.parametrize(("recipe", "tolerance"), CASES.items(), ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("tied", [False, True], ids=["own_head", "tied_head"])
@torch.inference_mode()
def test_the_file_computes_with_the_decoded_weights(recipe: str | Recipe, tolerance: float, tied: bool, tmp_path: Path) -> None:
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    model = random_decoder(tiny_config(layers=2, tied=tied, bias=True))
    spec = signature_specs((6,), prefill_logits=True)[0]
    file = Signatures(export_fast(model, [spec], tmp_path / "model.tflite", recipe))
    exact = random_decoder(tiny_config(layers=2, tied=tied, bias=True))
    for name, parameter in model.named_parameters():
        scheme = recipe.scheme_for(name)
        parameter.data = decode(encode(parameter.data, scheme), scheme, parameter.shape)
    inputs = random_inputs(model, spec.tokens, start=4)
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    expected = WholeDecoder(model, spec)(**tensors)["logits"].numpy()
    unquantized = WholeDecoder(exact, spec)(**tensors)["logits"].numpy()
    got = file.run(spec.name, inputs)["logits"]
    scale = float(expected.std())
    assert float(np.sqrt(np.mean((got - expected) ** 2))) <= tolerance * scale
    if recipe.name not in (
        "none",
        "fp16",
        "weight_only_int8",
        "dynamic_int8",
    ):  # int4 is far from the original, and near to what it decodes to
        assert float(np.sqrt(np.mean((got - unquantized) ** 2))) > 2 * tolerance * scale
