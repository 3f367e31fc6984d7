"""flatlm recipes"""

import argparse

from flatlm.commands import base
from flatlm.quantize.recipes import RECIPES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(args: argparse.Namespace) -> int:
    if args.json:
        base.print_json({"recipes": [recipe.to_dict() for recipe in RECIPES.values()]})
        return 0
    print(base.table(["recipe", "suffix", "what it does"], [[r.name, r.suffix, r.summary] for r in RECIPES.values()]))
    for recipe in RECIPES.values():
        if recipe.warning:
            print(f"\n{recipe.name}: {recipe.warning}")
    return 0
