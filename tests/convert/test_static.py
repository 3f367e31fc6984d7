"""Static int8 in the runtime: integers all the way, against the same in Python, with the CPU delegate and without."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from torch import nn

import flatlm.convert
from flatlm.convert.in_memory import InMemory
from flatlm.convert.weights import BIAS_LEVELS, WeightLayout
from flatlm.errors import CheckpointError, RecipeError
from flatlm.quantize.activations import ActivationRange, Affine, LayerRanges
from flatlm.quantize.calibrate import calibrate
from flatlm.quantize.encode import encode
from flatlm.quantize.quant_recipes import full_int8_static_recipe
from flatlm.quantize.recipes import Recipe
from flatlm.quantize.schemes import SCHEMES

RESOLVERS = {"delegate": OpResolverType.AUTO, "plain": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}
ROWS, COLUMNS = 33, 258


def module(bias: bool) -> nn.Linear:
    """Rows from 1e-3 to 1, so that the scales differ, and one of zeros, whose bias alone is left."""
    torch.manual_seed(0)
    linear = nn.Linear(COLUMNS, ROWS, bias=bias)
    linear.weight.data = torch.randn(ROWS, COLUMNS) * torch.logspace(-3, 0, ROWS)[:, None]
    linear.weight.data[3] = 0
    if bias:
        linear.bias.data = 3 * torch.randn(ROWS)
    return linear


def quantized(x: np.ndarray, affine: Affine) -> np.ndarray:
    return np.clip(np.rint(x.astype(np.float64) / affine.scale) + affine.zero_point, -128, 127)


def simulated(linear: nn.Linear, ranges: LayerRanges, x: np.ndarray) -> np.ndarray:
    """The operator as its integers define it."""
    read, gave = ranges.input.affine(), ranges.output.affine()
    encoded = encode(linear.weight.detach(), SCHEMES["static_int8"])
    total = (quantized(x, read) - read.zero_point) @ encoded.data.T.astype(np.float64) * (np.float64(read.scale) * encoded.scales)
    if linear.bias is not None:
        total = total + linear.bias.detach().numpy()
    return (quantized(total, gave) - gave.zero_point) * gave.scale


@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("tokens", [1, 16])
def test_the_runtime_computes_what_the_integers_say(tokens: int, bias: bool, tmp_path: Path) -> None:
    linear = module(bias)
    x = 2 * torch.randn(tokens, COLUMNS, generator=torch.Generator().manual_seed(1)) + 0.5
    recipe = full_int8_static_recipe(calibrate(linear, [(x,)]))
    flatlm.convert.convert(linear, (x,), quant_config=recipe).export(tmp_path / "a.tflite")
    ranges, floats = recipe.activations["weight"], linear(x).detach().numpy()
    step, expected = ranges.output.affine().scale, simulated(linear, ranges, x.numpy())
    for resolver in RESOLVERS.values():
        interpreter = Interpreter(str(tmp_path / "a.tflite"), num_threads=1, experimental_op_resolver_type=resolver)
        got = next(iter(interpreter.get_signature_runner()(args_0=x.numpy()).values()))
        steps = np.abs(got - expected) / step
        assert steps.max() <= 1.001  # the plain kernel rounds twice, so that some hundredth is one step off
        assert (steps > 0.5).mean() < 0.02
        assert np.abs(got - floats).max() <= 4 * step


def test_a_bias_beside_tiny_weights_fits(tmp_path: Path) -> None:
    """What a row of zeros gives is its bias: without a larger scale its integer would be 2**100 times too large."""
    ranges = LayerRanges(ActivationRange(-4.0, 4.0), ActivationRange(-8.0, 8.0))
    values = {"x.weight": torch.randn(4, 32), "x.bias": torch.tensor([1.0, -7.5, 3.0, 0.0])}
    values["x.weight"][1] = 0
    values["x.weight"][2] *= 1e-9
    values["x.weight"][3] = 0
    layout = WeightLayout({name: InMemory(value) for name, value in values.items()}, full_int8_static_recipe({"x.weight": ranges}))
    assert list(layout.weights) == ["x.weight"]  # the float bias is not in the file
    with (tmp_path / "part").open("w+b") as file:
        scales = layout.write(file.fileno(), 0)
    content = (tmp_path / "part").read_bytes()
    placed = layout.weights["x.weight"]
    integers = np.frombuffer(content, np.int8, 4 * 32, placed.data_offset).reshape(4, 32)
    bias = np.frombuffer(content, np.int32, 4, placed.bias.offset)
    read = ranges.input.affine().scale
    assert np.array_equal(scales["x.weight/bias"], np.float32(read) * scales["x.weight"])
    bias_scales = scales["x.weight/bias"].astype(np.float64)
    assert (np.abs(bias * bias_scales - values["x.bias"].numpy()) <= 0.5001 * bias_scales).all()
    assert np.abs(bias).max() <= BIAS_LEVELS * 1.0001
    np.testing.assert_allclose(integers * scales["x.weight"][:, None], values["x.weight"].numpy(), atol=float(scales["x.weight"].max()))
    plain = encode(values["x.weight"], SCHEMES["static_int8"])
    assert np.array_equal(integers[0], plain.data[0]) and scales["x.weight"][0] == plain.scales[0]  # the others are as ever
    assert scales["x.weight"][3] == plain.scales[3]


def layout_of(recipe_ranges: LayerRanges, bias: torch.Tensor) -> WeightLayout:
    sources = {"x.weight": InMemory(torch.ones(2, 8)), "x.bias": InMemory(bias)}
    return WeightLayout(sources, full_int8_static_recipe({"x.weight": recipe_ranges}))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    wide, narrow = ActivationRange(-1e6, 1e6), ActivationRange(-1e-3, 1e-3)
    with pytest.raises(RecipeError, match=r"'x\.weight' reads and gives"):
        WeightLayout({"x.weight": InMemory(torch.ones(2, 8))}, full_int8_static_recipe({}))
    with pytest.raises(RecipeError, match=r"decided by 'y\.\*'"):  # misspelt: said by the streaming export too
        WeightLayout({"x.weight": InMemory(torch.ones(2, 8))}, Recipe.mixed("mine", "none", {"y.*": "float16"}))
    with (tmp_path / "part").open("w+b") as file:
        with pytest.raises(RecipeError, match=r"what x\.weight gives, -0\.001 to 0\.001, is too narrow"):
            layout_of(LayerRanges(wide, narrow), torch.zeros(2)).write(file.fileno(), 0)
        with pytest.raises(CheckpointError, match=r"bias of x\.weight, row 1"):
            layout_of(LayerRanges(wide, wide), torch.tensor([0.0, torch.nan])).write(file.fileno(), 0)
