"""Recipes as files: what `flatlm tune` writes, and `--recipe` takes in the place of a name."""

import json
from pathlib import Path

from flatlm.convert.atomic_file import atomic_output
from flatlm.errors import RecipeError
from flatlm.quantize.recipes import Recipe, get_recipe


def find_recipe(name: str) -> Recipe:
    """The built-in recipe of that name, or the one in a file that ends in .json. Raises RecipeError, which names the file and the key."""
    return read_recipe(Path(name)) if name.endswith(".json") else get_recipe(name)


def read_recipe(path: Path) -> Recipe:
    """The recipe that `write_recipe` wrote, or somebody typed."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise RecipeError(f"{path} is not a recipe: {error}") from error
    try:
        return Recipe.from_dict(data)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Whole or not at all. Raises OutputError."""
    with atomic_output(path) as temporary:
        temporary.write_text(json.dumps(recipe.to_dict(), indent=2) + "\n", "utf-8")
