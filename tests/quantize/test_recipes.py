import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from flatlm.errors import RecipeError
from flatlm.quantize.method import Method
from flatlm.quantize.recipes import BOUNDS, RECIPES, Bound, Recipe, Rule, get_recipe, loosest_bound
from flatlm.quantize.schemes import SCHEMES

GOLDEN = Path(__file__).parent / "golden" / "recipes.txt"

MATRICES = [
    "embedding.weight",
    "blocks.0.attention.qkv.weight",
    "blocks.11.attention.output.weight",
    "blocks.0.feed_forward.gate_up.weight",
    "blocks.0.feed_forward.down.weight",
    "lm_head.weight",
    "projector.weight",
]
ALWAYS_FLOAT = [
    "final_norm.weight",
    "blocks.0.attention_norm.weight",
    "blocks.0.feed_forward_norm.weight",
    "blocks.0.attention.q_norm.weight",
    "blocks.3.attention.qkv.bias",
    "lm_head.bias",
]


def table() -> str:
    """Every recipe, and the scheme that it gives to each kind of weight, as text for people to review."""
    lines = []
    for recipe in RECIPES.values():
        lines += [f"{recipe.name} (_{recipe.suffix})", f"  {recipe.summary}", f"  warning: {recipe.warning}", f"  {recipe.bound}"]
        lines += [f"  {recipe.method}"] if recipe.method != Method() else []
        lines += [f"  {rule.pattern:20} {rule.scheme_name}" for rule in recipe.rules]
        lines += [f"    {name:40} -> {recipe.scheme_for(name).name}" for name in [*MATRICES, *ALWAYS_FLOAT]]
    lines += [str(scheme) for scheme in SCHEMES.values()]
    return "\n".join(lines) + "\n"


def test_table_is_the_reviewed_one() -> None:
    if os.environ.get("FLATLM_WRITE_GOLDEN"):
        GOLDEN.write_text(table(), encoding="utf-8")
    assert table() == GOLDEN.read_text(encoding="utf-8")


def test_names_and_suffixes() -> None:
    assert {name: recipe.suffix for name, recipe in RECIPES.items()} == {
        "none": "f32",
        "fp16": "fp16",
        "dynamic_int8": "q8",
        "weight_only_int8": "q8_wo",
        "static_int8": "q8_static",
        "dynamic_int4_block32": "q4_block32",
        "dynamic_int4_block128": "q4_block128",
        "dynamic_int4_channel": "q4_channel",
        "searched_int4_block32": "q4_block32_s",
        "searched_int4_channel": "q4_channel_s",
        "calibrated_int4_block32": "q4_block32_c",
        "calibrated_int4_block128": "q4_block128_c",
        "calibrated_int4_channel": "q4_channel_c",
    }
    assert all(name == recipe.name for name, recipe in RECIPES.items())
    assert set(BOUNDS) == set(SCHEMES)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_norms_and_biases_stay_float32(recipe: Recipe) -> None:
    assert {recipe.scheme_for(name).name for name in ALWAYS_FLOAT} == {"float32"}


def test_one_dimension_stays_float32_where_the_shape_is_known() -> None:
    recipe = get_recipe("dynamic_int8")
    assert recipe.scheme_for("blocks.0.attention.sinks", [32]).name == "float32"
    assert recipe.scheme_for("blocks.0.attention.sinks", [32, 32]).name == "dynamic_int8"


def test_per_channel_int4_without_calibration_warns_and_is_measured_only() -> None:
    unsafe = ["dynamic_int4_channel", "searched_int4_channel"]
    assert [name for name, recipe in RECIPES.items() if recipe.warning] == unsafe
    assert [name for name, recipe in RECIPES.items() if recipe.bound.measured_only] == ["static_int8", *unsafe]


def test_what_needs_text_says_so_in_its_name() -> None:
    assert {name for name, recipe in RECIPES.items() if recipe.method.needs_text} == {name for name in RECIPES if name[:4] == "cali"}
    assert {name for name, recipe in RECIPES.items() if recipe.method == Method("scale_search")} == {n for n in RECIPES if n[:4] == "sear"}


def custom(*rules: tuple[str, str], **changes: Any) -> Recipe:
    return Recipe(**({"name": "mine", "rules": tuple(Rule(*r) for r in rules), "suffix": "m", "bound": Bound(), "summary": "s"} | changes))


def test_first_match_wins() -> None:
    recipe = custom(("blocks.0.*", "float16"), ("*.attention.*", "dynamic_int8"), ("*", "dynamic_int4_block32"))
    assert recipe.scheme_for("blocks.0.attention.qkv.weight").name == "float16"
    assert recipe.scheme_for("blocks.1.attention.qkv.weight").name == "dynamic_int8"
    assert recipe.scheme_for("blocks.1.feed_forward.down.weight").name == "dynamic_int4_block32"


def test_patterns_match_case() -> None:
    assert custom(("LM_HEAD.*", "float16"), ("*", "dynamic_int8")).scheme_for("lm_head.weight").name == "dynamic_int8"


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ([], "last rule"),
        ([("lm_head.*", "float16")], "last rule"),
        ([("*", "float16"), ("lm_head.*", "float16")], "last rule"),
        ([("a.*", "float16"), ("a.*", "float32"), ("*", "float32")], r"'a\.\*' is there twice"),
        ([("*", "float32"), ("*", "float16")], "last rule"),
        ([("a.*", "dynamic_int9"), ("*", "float32")], r"pattern 'a\.\*'\) 'dynamic_int9'; did you mean 'dynamic_int8'"),
    ],
)
def test_bad_tables_are_refused(rules: list[tuple[str, str]], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        custom(*rules)


@pytest.mark.parametrize("suffix", ["", "a/b", "a.b", "_", "../x"])
def test_a_suffix_is_fit_for_a_file_name(suffix: str) -> None:
    with pytest.raises(RecipeError, match="file name"):
        custom(("*", "float32"), suffix=suffix)


def test_unmatched_names_the_idle_patterns() -> None:
    recipe = custom(("blocks.0.*", "float16"), ("*.atention.*", "float16"), ("blocks.0.attention.*", "float16"), ("*", "dynamic_int8"))
    assert recipe.unmatched([*MATRICES, *ALWAYS_FLOAT]) == ("*.atention.*", "blocks.0.attention.*")


def test_a_rule_about_norms_decides_nothing_and_unmatched_says_so() -> None:
    assert custom(("*_norm.*", "dynamic_int8"), ("*", "dynamic_int8")).unmatched([*MATRICES, *ALWAYS_FLOAT]) == ("*_norm.*",)


def test_unknown_recipe_gets_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="unknown recipe 'dynamic_in8'; did you mean 'dynamic_int8'"):
        get_recipe("dynamic_in8")
    with pytest.raises(RecipeError, match=r"unknown recipe 'zzz' \(allowed: none, fp16"):
        get_recipe("zzz")


def test_mixed_asks_the_overrides_first() -> None:
    recipe = Recipe.mixed("int8_ends", "dynamic_int4_block32", {"lm_head.*": "dynamic_int8", "blocks.0.*": "float16"})
    assert [recipe.scheme_for(name).name for name in MATRICES] == [
        "dynamic_int4_block32",
        "float16",
        "dynamic_int4_block32",
        "float16",
        "float16",
        "dynamic_int8",
        "dynamic_int4_block32",
    ]
    assert recipe.name == recipe.suffix == "int8_ends"
    assert recipe.bound == RECIPES["dynamic_int4_block32"].bound


def test_mixed_can_change_the_rest() -> None:
    recipe = Recipe.mixed("x", get_recipe("dynamic_int8"), {"*": "float16", "lm_head.*": "float32"})
    assert recipe.rules[0] == Rule("lm_head.*", "float32")
    assert recipe.rules[-1] == Rule("*", "float16")


def test_mixed_takes_the_loosest_bound_and_the_warning_of_what_is_in_it() -> None:
    assert Recipe.mixed("x", "none", {"lm_head.*": "dynamic_int8"}).bound == BOUNDS["dynamic_int8"]
    channel = Recipe.mixed("x", "none", {"lm_head.*": "dynamic_int4_channel"})
    assert channel.bound.measured_only
    assert channel.warning == RECIPES["dynamic_int4_channel"].warning
    assert Recipe.mixed("x", custom(("*", "float16"), warning="untried"), {"lm_head.*": "float32"}).warning == "untried"
    assert loosest_bound(["float32", "float16", "dynamic_int4_block128", "dynamic_int8"]) == BOUNDS["dynamic_int4_block128"]
    assert loosest_bound(["float32"]) == BOUNDS["float32"]


def test_mixed_from_a_calibrated_recipe_keeps_what_calibration_promises() -> None:
    calibrated = Recipe.mixed("x", "calibrated_int4_channel", {"lm_head.*": "dynamic_int8"})
    assert calibrated.bound == BOUNDS["dynamic_int4_block128"] and calibrated.warning is None
    assert calibrated.method == Method("gptq")
    searched = Recipe.mixed("x", "searched_int4_channel", {"lm_head.*": "dynamic_int8"})
    assert searched.bound.measured_only and searched.warning == RECIPES["dynamic_int4_channel"].warning
    static = Recipe.mixed("x", "calibrated_int4_channel", {"lm_head.*": "static_int8"})
    assert static.bound.measured_only and static.warning is None


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_recipes_go_through_json_and_back(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def good() -> dict[str, Any]:
    return custom(("lm_head.*", "float16"), ("*", "dynamic_int8")).to_dict()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sufix": "x"}, "unknown recipe key 'sufix'; did you mean 'suffix'"),
        ({"rules": [{"pattern": "*", "scheme": "dynamic_int8", "x": 1}]}, "unknown recipe rule key 'x'"),
        ({"rules": [{"pattern": "*"}]}, "recipe rule lacks 'scheme'"),
        ({"rules": [["*", "float32"]]}, "recipe rule must be a table"),
        ({"rules": "float32"}, "'rules' must be a list"),
        ({"rules": [{"pattern": "*", "scheme": "dynamicint8"}]}, "'dynamicint8'; did you mean 'dynamic_int8'"),
        ({"rules": [{"pattern": "*", "scheme": 8}]}, "'scheme' must be text"),
        ({"bound": {"kl": 1}}, "unknown recipe bound key 'kl'"),
        ({"bound": {"mean_kl": "small"}}, "'mean_kl' must be a number"),
        ({"bound": {"mean_kl": True}}, "'mean_kl' must be a number"),
        ({"bound": None}, "recipe bound must be a table"),
        ({"name": ""}, "'name' must be text"),
        ({"warning": 3}, "'warning' must be text"),
    ],
)
def test_from_dict_is_strict(change: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Recipe.from_dict(good() | change)


def test_from_dict_names_what_is_missing() -> None:
    with pytest.raises(RecipeError, match="recipe lacks 'bound', 'summary'"):
        Recipe.from_dict({key: value for key, value in good().items() if key not in {"bound", "summary"}})


def test_from_dict_needs_no_warning_and_no_complete_bound() -> None:
    data = good() | {"bound": {"mean_kl": 1}}
    del data["warning"]
    assert Recipe.from_dict(data).bound == Bound(mean_kl=1)


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_recipe("none").name = "x"  # type: ignore[misc]


def test_a_method_goes_through_json_and_back():
    recipe = dataclasses.replace(get_recipe("dynamic_int4_channel"), method=Method("gptq", rotate=True, migrate=True))
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert recipe.method.needs_text and not get_recipe("dynamic_int4_channel").method.needs_text


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"rounding": "gptqq"}, "unknown rounding 'gptqq'"),
        ({"rounding": 3}, "'rounding' cannot be 3"),
        ({"smooth": 2}, "from 0 to 1"),
        ({"smooth": True}, "'smooth' cannot be True"),
        ({"rotate": "yes"}, "'rotate' cannot be 'yes'"),
        ({"smooth": 0.5, "migrate": True}, "choose one"),
        ({"rotates": True}, "did you mean 'rotate'"),
        ([], "recipe method must be a table"),
    ],
)
def test_a_wrong_method_is_refused(method, words):
    with pytest.raises(RecipeError, match=words):
        Recipe.from_dict(get_recipe("none").to_dict() | {"method": method})
