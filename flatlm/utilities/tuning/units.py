"""What a search decides on: the weights of a model in groups that get one scheme together, and how large each scheme makes them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from flatlm.convert.weights import WeightSource
from flatlm.errors import RecipeError
from flatlm.layers.config import MixtureConfig, ModelConfig
from flatlm.quantize.method import Method
from flatlm.quantize.recipes import REST, Recipe, Rule
from flatlm.quantize.schemes import Scheme, get_scheme

SEARCHED = ("dynamic_int8", "dynamic_int4_block32", "dynamic_int4_channel")
"""The schemes that a search chooses from, unless it is told which."""
CHANNEL_SCALE_BYTES = 12
"""In the file's root: a float32 scale and an int64 zero point."""


@dataclass(frozen=True)
class Unit:
    """`pattern` matches its weights in a recipe, and no others; `layer` is the block's index, or None outside of the blocks."""

    pattern: str
    layer: int | None
    weights: tuple[str, ...]

    @property
    def projections(self) -> tuple[str, ...]:
        """The names of its projections in their block."""
        return tuple(name.removeprefix(f"blocks.{self.layer}.").removesuffix(".weight") for name in self.weights)


def units(config: ModelConfig) -> Iterator[Unit]:
    """In the order in which they are reached; a mixture's experts are one unit for each of their two projections, its router stays int8."""
    yield Unit("embedding.weight", None, ("embedding.weight",))
    for layer, block in enumerate(config.blocks):
        prefix = f"blocks.{layer}"
        for name in ("attention.qkv", "attention.output"):
            yield _single(prefix, layer, name)
        if isinstance(block.feed_forward, MixtureConfig):
            for name in ("gate_up" if block.feed_forward.expert.gated else "up", "down"):
                experts = tuple(f"{prefix}.feed_forward.experts.{e}.{name}.weight" for e in range(block.feed_forward.num_experts))
                yield Unit(f"{prefix}.feed_forward.experts.*.{name}.weight", layer, experts)
        else:
            for name in ("gate_up" if block.feed_forward.gated else "up", "down"):
                yield _single(prefix, layer, f"feed_forward.{name}")
    if not config.tied_head:
        yield Unit("lm_head.weight", None, ("lm_head.weight",))


def possible(unit: Unit, schemes: Sequence[str], sources: Mapping[str, WeightSource]) -> list[str]:
    """Those of the schemes that fit the unit's weights. RecipeError where none does."""
    fitting = [name for name in schemes if all(_fits(get_scheme(name), weight, sources[weight].shape) for weight in unit.weights)]
    if not fitting:
        raise RecipeError(
            f"none of {', '.join(schemes)} fits {unit.pattern} of shape {list(sources[unit.weights[0]].shape)}; add dynamic_int8"
        )
    return fitting


def size(unit: Unit, scheme: str, sources: Mapping[str, WeightSource]) -> int:
    """Bytes of the unit's weights and scales in a file."""
    return sum(stored_bytes(get_scheme(scheme), sources[weight].shape) for weight in unit.weights)


def stored_bytes(scheme: Scheme, shape: Sequence[int]) -> int:
    """Bytes of a weight and its scales in a file, without what aligns them."""
    if not scheme.quantized:
        return scheme.nbytes(shape)
    scales = CHANNEL_SCALE_BYTES * shape[0] if scheme.block_size is None else scheme.scales_nbytes(shape)
    return scheme.nbytes(shape) + scales


def recipe_of(schemes: Mapping[str, str], name: str = "tuned") -> Recipe:
    """A recipe that gives each unit its scheme, by its pattern; whatever is in none of them int8. Calibrated by GPTQ."""
    rules = tuple(Rule(pattern, scheme) for pattern, scheme in schemes.items())
    counts = {scheme: list(schemes.values()).count(scheme) for scheme in dict.fromkeys(schemes.values())}
    summary = "found by flatlm tune: " + ", ".join(f"{scheme} for {count}" for scheme, count in counts.items())
    return Recipe.of(name, (*rules, Rule(REST, "dynamic_int8")), name, summary, Method("gptq"))


def matrix_parameters(sources: Mapping[str, WeightSource]) -> int:
    """How many numbers the matrices have."""
    return sum(math.prod(source.shape) for source in sources.values() if len(source.shape) == 2)


def _single(prefix: str, layer: int, name: str) -> Unit:
    return Unit(f"{prefix}.{name}.weight", layer, (f"{prefix}.{name}.weight",))


def _fits(scheme: Scheme, name: str, shape: Sequence[int]) -> bool:
    try:
        scheme.check(name, shape)
    except RecipeError:
        return False
    return True
