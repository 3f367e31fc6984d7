"""Recipes as functions, the ranges in them, and how ranges are measured."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from flatlm.convert.decoder import WholeDecoder
from flatlm.convert.signatures import signature_specs
from flatlm.errors import RecipeError
from flatlm.layers.kv_cache import empty_caches
from flatlm.quantize import quant_recipes as recipes
from flatlm.quantize.activations import SMALLEST_ACTIVATION_SCALE, ActivationRange, Affine, LayerRanges
from flatlm.quantize.calibrate import calibrate
from flatlm.quantize.recipes import LAYER_KINDS, RECIPES, Bound, Recipe
from flatlm.quantize.schemes import SCHEMES
from flatlm.quantize.weight_names import weight_names
from tests.models import random_decoder, tiny_config

NAMES = [
    "embedding.weight",
    "position_embedding.weight",
    "blocks.0.attention.qkv.weight",
    "blocks.0.feed_forward.down.weight",
    "blocks.0.feed_forward.router.weight",
    "lm_head.weight",
    "0.weight",
]
RANGES = LayerRanges(ActivationRange(-1.0, 3.0), ActivationRange(-2.0, 2.5))
ALL = {
    "full_linear_int8_dynamic": recipes.full_linear_int8_dynamic_recipe(),
    "full_int8_dynamic": recipes.full_int8_dynamic_recipe(),
    "full_int8_weight_only": recipes.full_int8_weight_only_recipe(),
    "full_fp16": recipes.full_fp16_recipe(),
    "full_int4_block": recipes.full_int4_block_recipe(),
    "full_int4_block128": recipes.full_int4_block_recipe(128),
    "full_int4_channel": recipes.full_int4_channel_recipe(),
    "full_int8_static": recipes.full_int8_static_recipe(dict.fromkeys(NAMES, RANGES)),
    "mixed": recipes.mixed_recipe(
        "ends", embedding="float32", attention="dynamic_int8", feed_forward="float16", head="dynamic_int4_channel"
    ),
}
SHORT = {"dynamic_int8": "d8", "weight_only_int8": "w8", "static_int8": "s8", "float32": "f32", "float16": "f16"}


def schemes(recipe: Recipe) -> str:
    names = [recipe.scheme_for(name).name for name in NAMES]
    return " ".join(SHORT.get(name, name.removeprefix("dynamic_int4_")) for name in names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("full_linear_int8_dynamic", "f32 f32 d8 d8 d8 d8 d8"),
        ("full_int8_dynamic", "d8 d8 d8 d8 d8 d8 d8"),
        ("full_int8_weight_only", "w8 w8 w8 w8 w8 w8 w8"),
        ("full_fp16", "f16 f16 f16 f16 f16 f16 f16"),
        ("full_int4_block", "block32 block32 block32 block32 block32 block32 block32"),
        ("full_int4_block128", "block32 block128 block128 block128 block128 block128 block128"),
        ("full_int4_channel", "channel channel channel channel channel channel channel"),
        ("full_int8_static", "d8 d8 s8 s8 d8 d8 s8"),
        ("mixed", "f32 f16 d8 f16 f16 channel f16"),
    ],
)
def test_which_weight_has_which_scheme(name: str, expected: str) -> None:
    assert schemes(ALL[name]) == expected


@pytest.mark.parametrize("recipe", ALL.values(), ids=list(ALL))
def test_they_go_through_json_fit_any_model_and_can_be_keys(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    recipe.require_matches(["0.weight", "0.bias"])
    assert {rule.pattern for rule in recipe.rules} <= LAYER_KINDS
    assert {recipe: 1}[recipe] == 1


def test_names_and_suffixes_are_one_apiece() -> None:
    suffixes = {recipe.name: recipe.suffix for recipe in [*ALL.values(), *RECIPES.values()]}
    assert len(set(suffixes.values())) == len(suffixes)


def test_importing_them_loads_neither_torch_nor_numpy() -> None:
    code = "import flatlm.quantize.quant_recipes, sys; sys.exit(bool({'torch', 'numpy', 'torchao'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_static_recipe_keeps_the_ranges_of_what_is_static() -> None:
    recipe = ALL["full_int8_static"]
    assert set(recipe.activations) == {"blocks.0.attention.qkv.weight", "blocks.0.feed_forward.down.weight", "0.weight"}
    assert recipe.ranges_for("0.weight", recipe.scheme_for("0.weight")) == RANGES
    assert recipe.ranges_for("lm_head.weight", recipe.scheme_for("lm_head.weight")) is None
    with pytest.raises(RecipeError, match=r"'blocks\.7\.attention\.qkv\.weight' reads and gives.*calibrate"):
        recipe.ranges_for("blocks.7.attention.qkv.weight", SCHEMES["static_int8"])
    assert Recipe.mixed("x", recipe, {"lm_head.*": "float32"}).activations == recipe.activations


def test_a_pattern_that_decides_nothing_is_refused_and_a_kind_of_layer_is_not() -> None:
    recipe = Recipe.mixed("mine", "dynamic_int8", {"blocks.0.atention.*": "float16", "lm_head.*": "float32"})
    with pytest.raises(RecipeError, match=r"'mine': no weight is decided by 'blocks\.0\.atention\.\*'.*embedding\.weight"):
        recipe.require_matches(NAMES)
    Recipe.mixed("mine", "dynamic_int8", {"blocks.0.attention.*": "float16"}).require_matches(NAMES)


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [
        (-1.0, 1.0, 2 / 255, -1),  # float32 makes the scale a little larger: -128 + 127.49999
        (0.0, 255.0, 1.0, -128),
        (-255.0, 0.0, 1.0, 127),
        (2.0, 4.0, 4 / 255, -128),  # widened to hold 0
        (-4.0, -2.0, 4 / 255, 127),
        (0.0, 0.0, SMALLEST_ACTIVATION_SCALE, -128),
        (-10.0, 245.0, 1.0, -118),
    ],
)
def test_scale_and_zero_point(low: float, high: float, scale: float, zero_point: int) -> None:
    assert ActivationRange(low, high).affine() == Affine(float(np.float32(scale)), zero_point)


def test_zero_is_exact_and_both_ends_are_within_half_a_step() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        low, high = sorted(float(v) for v in rng.standard_normal(2) * 10.0 ** rng.integers(-6, 6))
        affine = ActivationRange(low, high).affine()
        assert affine.scale == float(np.float32(affine.scale)) and -128 <= affine.zero_point <= 127
        for value in (low, high, 0.0):
            integer = np.clip(np.round(value / affine.scale) + affine.zero_point, -128, 127)
            assert abs((integer - affine.zero_point) * affine.scale - value) <= (0.0 if value == 0 else 0.5001 * affine.scale)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (math.nan, 1.0), (0.0, math.inf), (True, 2.0), ("0", 1.0), (0.0, 1e39)])
def test_what_is_no_range(low: float, high: float) -> None:
    with pytest.raises(RecipeError, match="activation range"):
        ActivationRange(low, high)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (3, r"'0\.weight' must be a table of 'input' and 'output'"),
        ({"input": [0, 1]}, r"'0\.weight' must be a table"),
        ({"input": [0, 1], "output": [1]}, r"output of '0\.weight' must be \[lowest, highest\]"),
        ({"input": [1, 0], "output": [0, 1]}, r"input of '0\.weight'.*above the highest"),
        ({"input": [0, "1"], "output": [0, 1]}, r"input of '0\.weight'.*not a finite number"),
    ],
)
def test_from_dict_names_the_weight_whose_ranges_are_wrong(entry: object, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Recipe.from_dict(RECIPES["none"].to_dict() | {"activations": {"0.weight": entry}})
    with pytest.raises(RecipeError, match="'activations' must be a table"):
        Recipe.from_dict(RECIPES["none"].to_dict() | {"activations": [entry]})


def test_mixed_takes_the_loosest_bound_and_refuses_unknown_schemes() -> None:
    assert ALL["mixed"].bound == Bound() and ALL["mixed"].warning == RECIPES["dynamic_int4_channel"].warning
    with pytest.raises(RecipeError, match="did you mean 'dynamic_int8'"):
        recipes.mixed_recipe("x", embedding="dynamic_in8", attention="float32", feed_forward="float32", head="float32")
    with pytest.raises(RecipeError, match="unknown recipe 'dynamic_int4_block64'"):
        recipes.full_int4_block_recipe(64)


class Calls(nn.Module):
    """A linear, one that is a plain call, and one that is run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.own = nn.Parameter(torch.randn(2, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.first(x) + self.first(2 * x), weight=self.own)


def test_calibrate_records_what_each_linear_reads_and_gives() -> None:
    torch.manual_seed(0)
    module = Calls().train()
    samples = [(torch.randn(2, 3),), (torch.randn(5, 3),)]
    found = calibrate(module, samples)
    assert module.training and all(parameter.grad is None for parameter in module.parameters())
    reads = torch.cat([torch.cat([x, 2 * x]) for (x,) in samples])
    gives = module.first(reads)
    assert found["first.weight"] == LayerRanges(
        ActivationRange(reads.min().item(), reads.max().item()), ActivationRange(gives.min().item(), gives.max().item())
    )
    out = torch.cat([module(x) for (x,) in samples])
    assert found["own"].output == ActivationRange(out.min().item(), out.max().item())
    assert set(found) == {"first.weight", "own"}


def test_calibrate_refuses_nothing_and_nan() -> None:
    with pytest.raises(RecipeError, match="no linear was run"):
        calibrate(Calls(), [])
    with pytest.raises(RecipeError, match=r"'first\.weight'.*nan"):
        calibrate(Calls(), [(torch.full((1, 3), math.nan),)])


@pytest.mark.parametrize("tied", [False, True])
def test_calibrate_knows_the_decoders_names_and_a_wrapped_ones_too(tied: bool) -> None:
    model = random_decoder(tiny_config(tied=tied))
    whole = WholeDecoder(model, signature_specs((4,), prefill_logits=True)[0])
    tokens, positions = torch.arange(4, dtype=torch.int32)[None], torch.arange(4, dtype=torch.int32)
    found = calibrate(model, [(tokens, positions, empty_caches(model.config, model.geometry))])
    linears = {name for name, value in model.named_parameters() if value.ndim == 2 and name != "embedding.weight"}
    assert set(found) == linears | ({"embedding.weight"} if tied else set())  # a tied head's linear has the embedding's weight
    assert set(weight_names(whole)) == set(weight_names(model))
