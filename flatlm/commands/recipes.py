"""flatlm recipes"""

import argparse

from flatlm.commands import base
from flatlm.quantize.recipe_figures import HEADERS, MODELS, figure_rows, recipe_figures
from flatlm.quantize.recipes import RECIPES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(args: argparse.Namespace) -> int:
    if args.json:
        figures = recipe_figures()
        base.print_json({"recipes": [recipe.to_dict() | {"measured": figures.get(name, {})} for name, recipe in RECIPES.items()]})
        return 0
    print(base.table(["recipe", "suffix", "what it does"], [[r.name, r.suffix, r.summary] for r in RECIPES.values()]))
    print(f"\nMeasured on {MODELS['demo']}, KL and perplexity on held-out text, and on {MODELS['large']}; tokens a second:")
    print(base.table(list(HEADERS), figure_rows(list(RECIPES))))
    for recipe in RECIPES.values():
        if recipe.warning:
            print(f"\n{recipe.name}: {recipe.warning}")
    return 0
