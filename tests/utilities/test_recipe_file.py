"""Recipes as files: there and back, and clear words for what is none."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flatlm.errors import OutputError, RecipeError
from flatlm.quantize.activations import ActivationRange, LayerRanges
from flatlm.quantize.method import Method
from flatlm.quantize.recipes import RECIPES, Recipe
from flatlm.utilities.recipe_file import find_recipe, read_recipe, write_recipe

MINE = replace(
    Recipe.mixed("mine", "calibrated_int4_block32", {"blocks.0.*": "dynamic_int8", "lm_head.*": "static_int8"}),
    method=Method("gptq", rotate=True, migrate=True),
    activations={"lm_head.weight": LayerRanges(ActivationRange(-1.25, 2.0), ActivationRange(-30.0, 0.1))},
)


@pytest.mark.parametrize("recipe", [*RECIPES.values(), MINE], ids=lambda recipe: recipe.name)
def test_what_is_written_is_read(recipe: Recipe, tmp_path: Path) -> None:
    write_recipe(tmp_path / "recipe.json", recipe)
    assert read_recipe(tmp_path / "recipe.json") == recipe
    assert find_recipe(str(tmp_path / "recipe.json")) == recipe
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


def test_a_name_is_not_a_file() -> None:
    assert find_recipe("dynamic_int8") is RECIPES["dynamic_int8"]
    with pytest.raises(RecipeError, match="did you mean 'dynamic_int8'"):
        find_recipe("dynamic_int")


def test_one_that_was_typed(tmp_path: Path) -> None:
    data = {"name": "typed", "rules": [{"pattern": "*", "scheme": "dynamic_int8"}], "suffix": "t", "bound": {}, "summary": "s"}
    (tmp_path / "typed.json").write_text(json.dumps(data))
    assert read_recipe(tmp_path / "typed.json").scheme_for("lm_head.weight").name == "dynamic_int8"


def damaged(change: dict[str, Any], *, without: str | None = None) -> str:
    data = MINE.to_dict() | change
    return json.dumps({key: value for key, value in data.items() if key != without})


ANY = {"pattern": "*", "scheme": "dynamic_int8"}
BAD = {
    "not json": ("{", "is not a recipe"),
    "empty": ("", "is not a recipe"),
    "a list": ("[]", "recipe must be a table"),
    "text": ('"dynamic_int8"', "recipe must be a table"),
    "a number of thousands of digits": ('{"name": 1' + "0" * 5000 + "}", "is not a recipe"),
    "deep": ("[" * 100_000, "is not a recipe"),
    "an unknown key": (damaged({"methods": {}}), "unknown recipe key 'methods'; did you mean 'method'"),
    "a key that is missing": (damaged({}, without="rules"), "recipe lacks 'rules'"),
    "an unknown scheme": (damaged({"rules": [{"pattern": "*", "scheme": "int8"}]}), "unknown scheme"),
    "rules of another kind": (damaged({"rules": {"*": "dynamic_int8"}}), "'rules' must be a list"),
    "a rule with more": (damaged({"rules": [ANY | {"bits": 4}]}), "unknown recipe rule key 'bits'"),
    "no last rule": (damaged({"rules": [{"pattern": "lm_head.*", "scheme": "dynamic_int8"}]}), "the last rule"),
    "a rule twice": (damaged({"rules": [{"pattern": "a*", "scheme": "float16"}] * 2 + [ANY]}), "is there twice"),
    "a suffix with a slash": (damaged({"suffix": "a/b"}), "goes into a file name"),
    "an unknown rounding": (damaged({"method": {"rounding": "best"}}), "unknown rounding 'best'"),
    "an unknown method": (damaged({"method": {"rotates": True}}), "unknown recipe method key 'rotates'"),
    "a method that is text": (damaged({"method": "gptq"}), "recipe method must be a table"),
    "a switch that is a number": (damaged({"method": {"rotate": 1}}), "'rotate' cannot be 1"),
    "smoothing beyond 1": (damaged({"method": {"smooth": 1.5}}), "from 0 to 1"),
    "smoothing that is no number": (damaged({"method": {"smooth": True}}), "'smooth' cannot be True"),
    "smoothing of NaN": (damaged({"method": {"smooth": float("nan")}}), "from 0 to 1"),
    "two that move scales": (damaged({"method": {"smooth": 0.5, "migrate": True}}), "choose one"),
    "a range of one end": (
        damaged({"activations": {"lm_head.weight": {"input": [1.0], "output": [0, 1]}}}),
        r"'lm_head.weight' must be \[",
    ),
    "a bound of words": (damaged({"bound": {"mean_kl": "small"}}), "'mean_kl' must be a number"),
}


@pytest.mark.parametrize(("content", "words"), BAD.values(), ids=BAD)
def test_what_is_no_recipe_names_the_file(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(RecipeError, match=rf"bad\.json.*{words}"):
        find_recipe(str(tmp_path / "bad.json"))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"missing\.json cannot be read: No such file"):
        find_recipe(str(tmp_path / "missing.json"))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(RecipeError, match=r"folder\.json cannot be read: Is a directory"):
        find_recipe(str(tmp_path / "folder.json"))
    (tmp_path / "latin.json").write_bytes(b'"caf\xe9"')
    with pytest.raises(RecipeError, match=r"latin\.json is not a recipe"):
        find_recipe(str(tmp_path / "latin.json"))


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is not a directory"):
        write_recipe(tmp_path / "nowhere" / "recipe.json", MINE)
