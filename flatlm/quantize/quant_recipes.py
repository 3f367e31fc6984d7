"""Recipes as functions, by the names that the field knows: each returns a record for `flatlm.convert.convert(..., quant_config=...)`.

The same record goes to `flatlm export` through `ExportRequest.recipe`; both give the same integers and scales. A recipe says which
scheme a weight has by its name (recipes.py), and some weights share one: a tied head is stored as the embedding is.
Importing this loads neither torch nor numpy.
"""

import dataclasses
from collections.abc import Mapping

from flatlm.quantize.activations import LayerRanges
from flatlm.quantize.recipes import RECIPES, TABLES, Recipe, Rule, get_recipe, layers


def full_int8_dynamic_recipe() -> Recipe:
    """Every matrix int8 per channel, tables too; activations quantized as they come. The default of `flatlm export`."""
    return RECIPES["dynamic_int8"]


def full_linear_int8_dynamic_recipe() -> Recipe:
    """Every linear int8 per channel, activations quantized as they come; what is called an embedding, and a head tied to it, float32."""
    rules = layers(embedding="float32", attention="dynamic_int8", feed_forward="dynamic_int8", head="dynamic_int8")
    summary = "linears int8 per channel, activations quantized as they come; embeddings float32"
    return Recipe.of("linear_dynamic_int8", (Rule(TABLES, "float32"), *rules[1:]), "q8_linear", summary)


def full_int8_weight_only_recipe() -> Recipe:
    """Every matrix int8 per channel, dequantized to compute in float."""
    return RECIPES["weight_only_int8"]


def full_fp16_recipe() -> Recipe:
    """Every matrix float16, computed in float."""
    return RECIPES["fp16"]


def full_int4_block_recipe(block_size: int = 32) -> Recipe:
    """Every matrix int4 in blocks of 32 or 128 columns, activations quantized as they come. RecipeError for another size."""
    return get_recipe(f"dynamic_int4_block{block_size}")


def full_int4_channel_recipe() -> Recipe:
    """Every matrix int4 per channel, activations quantized as they come: for weights that were trained or calibrated for it."""
    return RECIPES["dynamic_int4_channel"]


def full_int8_static_recipe(calibration: Mapping[str, LayerRanges]) -> Recipe:
    """Blocks in integers all the way: linears int8 per channel, between activations whose ranges were measured on a text.

    `calibration` is what `flatlm.quantize.calibrate.calibrate` returns: the ranges of each linear, by its weight's name. Ranges of
    what is not static are left out. A static weight without ranges is refused when the recipe is applied.

    The head is int8 with activations as they come: one scale for all logits of a vocabulary, of which a few are large, would round the
    many differences that choose a token to nothing. So is a mixture's router, where two experts are as near to one another. A table is
    only looked up, which has no activations; its int8 rows are the same in both schemes.
    """
    return with_ranges(RECIPES["static_int8"], calibration)


def mixed_recipe(name: str, *, embedding: str, attention: str, feed_forward: str, head: str) -> Recipe:
    """A recipe by kind of layer, each with the name of a scheme (schemes.py); RecipeError for one that there is not.

    `name` is the suffix too. Ranges for static schemes are added by `with_ranges`.

    >>> mixed_recipe("ends", embedding="dynamic_int8", attention="float16", feed_forward="float16", head="dynamic_int8").suffix
    'ends'
    """
    kinds = {"embedding": embedding, "attention": attention, "feed_forward": feed_forward, "head": head}
    rules = layers(embedding=embedding, attention=attention, feed_forward=feed_forward, head=head)
    return Recipe.of(name, rules, name, ", ".join(f"{kind} {scheme}" for kind, scheme in kinds.items()))


def with_ranges(recipe: Recipe, calibration: Mapping[str, LayerRanges]) -> Recipe:
    """The recipe with the ranges of those weights that it stores for static activations, and of no others."""
    static = {name: ranges for name, ranges in calibration.items() if recipe.scheme_for(name).compute == "static"}
    return dataclasses.replace(recipe, activations=static)
