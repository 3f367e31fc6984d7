"""Calibration of a whole checkpoint, a block at a time: integers, scales and ranges for the exporter, as its recipe's method asks."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flatlm.convert.weights import IntegerSource, WeightSource
from flatlm.errors import CheckpointError, RecipeError
from flatlm.layers.block import Block
from flatlm.layers.config import ModelConfig
from flatlm.progress import Progress
from flatlm.quantize import gptq
from flatlm.quantize.activations import ActivationRange, LayerRanges
from flatlm.quantize.calibrate import OverflowingLinearError, RangeRecorder
from flatlm.quantize.carried import IntegerRows, concatenate
from flatlm.quantize.encode import as_stored
from flatlm.quantize.recipes import Recipe
from flatlm.quantize.schemes import Scheme
from flatlm.utilities.calibration import migrate
from flatlm.utilities.calibration.rotate import obstacle, rotate
from flatlm.utilities.calibration.sources import Changed, Scratch, Searched, read_rows, read_whole
from flatlm.utilities.calibration.statistics import InputStatistics, gather
from flatlm.utilities.calibration.stream import TABLES, ModelStream, linears, row_slices
from flatlm.utilities.calibration.text import CalibrationText, no_text

HESSIAN_BYTES = 1 << 30
"""Statistics of inputs are gathered for so many projections at a time as fit in this; always for one."""
LOOKUP_SHARE = 1.0
"""What a tied table's own error counts beside that of the logits, in units of the mean diagonal of the head's Hessian."""


@dataclass
class Calibrated:
    """What an export goes on with: the sources of all weights, and the recipe, with the ranges that its static schemes need."""

    sources: dict[str, WeightSource]
    recipe: Recipe


def require_possible(config: Any, sources: Mapping[str, WeightSource], recipe: Recipe, *, text: bool) -> None:
    """RecipeError where the recipe's method does not suit the model, or needs text and there is none; before any weight is read."""
    if not isinstance(config, ModelConfig) and (recipe.method.rotate or recipe.needs_text(sources)):
        raise RecipeError(f"recipe {recipe.name!r} calibrates, which FlatLM does for decoders alone: choose a recipe that needs no text")
    if recipe.method.rotate:
        reason = obstacle(config)
        kept = [name for name, source in sources.items() if _kept(source, recipe.scheme_for(name, source.shape))]
        if reason is None and kept:
            reason = f"the checkpoint holds {kept[0]} as integers, which it would lose"
        if reason is not None:
            raise RecipeError(
                f"recipe {recipe.name!r} rotates the residual stream, which this model does not allow: {reason}; use a recipe that does not"
            )
    for name in (*TABLES, "lm_head.weight"):
        if name in sources and recipe.lacks_ranges(name):
            raise RecipeError(
                f"recipe {recipe.name!r}: {name} cannot have static activations, which a table does not read, and whose one scale would "
                "round all logits to nothing: give it dynamic_int8"
            )
    if not text and recipe.needs_text(sources):
        raise no_text(f"recipe {recipe.name!r}")


def with_assumed_ranges(recipe: Recipe, names: Iterable[str]) -> Recipe:
    """The recipe with ranges for every static weight, to plan with: sizes do not depend on their values."""
    assumed = LayerRanges(ActivationRange(-1.0, 1.0), ActivationRange(-1.0, 1.0))
    missing = {name: assumed for name in names if recipe.lacks_ranges(name)}
    return replace(recipe, activations={**recipe.activations, **missing})


def calibrate_checkpoint(
    config: ModelConfig,
    sources: Mapping[str, WeightSource],
    recipe: Recipe,
    scratch: Scratch,
    *,
    text: CalibrationText | None = None,
    progress: Progress | None = None,
) -> Calibrated:
    """Choose integers as the recipe's method says.

    Methods are for weights of 4 bits: int8 is rounded to the nearest, as ever. Without text (methods that need none) this returns at once,
    and rows are searched when they are read. Memory: two copies of a block in float32, the text's activations between two blocks (twice),
    and HESSIAN_BYTES or the largest projection's statistics. `scratch` holds the solved integers until they are linked.

    Raises RecipeError where the method does not suit the model, CheckpointError for weights that are not finite.
    """
    require_possible(config, sources, recipe, text=text is not None)
    found = rotate(config, sources) if recipe.method.rotate else dict(sources)
    if text is not None and recipe.needs_text(sources):
        return _Calibration(config, found, recipe, scratch, text, progress).run()
    if recipe.method.rounding == "nearest":
        return Calibrated(found, recipe)
    return Calibrated({name: _searched(name, source, recipe) for name, source in found.items()}, recipe)


def _kept(source: WeightSource, scheme: Scheme) -> bool:
    """Whether the checkpoint holds it as integers that the scheme takes over."""
    stored = source.stored_integers() if isinstance(source, IntegerSource) else None
    return stored is not None and stored.misfit(scheme) is None


def _searched(name: str, source: WeightSource, recipe: Recipe) -> WeightSource:
    """The weight with its integers searched, where the method says so; what GPTQ does not solve for (tables) gets the best scales."""
    scheme, rounding = recipe.scheme_for(name, source.shape), recipe.method.rounding
    if not recipe.method.searches(scheme) or _kept(source, scheme):
        return source
    scheme.check(name, source.shape)
    return Searched(source, scheme, "scale_search" if rounding == "gptq" else rounding)


def _as_stored(name: str, source: WeightSource, recipe: Recipe) -> WeightSource:
    """A weight as the file's reader sees it, where its integers are made while it is linked."""
    scheme = recipe.scheme_for(name, source.shape)
    if isinstance(source, Searched) or not scheme.quantized or _kept(source, scheme):
        return source
    return Changed(source, lambda rows, start: as_stored(rows, scheme))


class _Calibration:
    def __init__(
        self,
        config: ModelConfig,
        sources: dict[str, WeightSource],
        recipe: Recipe,
        scratch: Scratch,
        text: CalibrationText,
        progress: Progress | None,
    ) -> None:
        self.config, self.recipe, self.scratch, self.text = config, recipe, scratch, text
        self.sources = sources  # what the exact model is made of; migration changes it
        self.chosen = dict(sources)  # what is exported
        self.ranges: dict[str, LayerRanges] = {}
        self.exact = ModelStream(config, self.sources, text.tokens.shape[1])
        self.solving = recipe.method.rounding == "gptq"
        self.measuring = any(recipe.lacks_ranges(name) for name in sources)
        self.progress = progress or (lambda what, done, total: None)

    @torch.inference_mode()
    def run(self) -> Calibrated:
        config, tokens = self.config, self.text.tokens
        for table in TABLES:
            if table in self.sources:
                self.chosen[table] = _searched(table, self.sources[table], self.recipe)
        x = self.exact.embed(tokens)
        y = x
        if self.solving:
            tables = {name: _as_stored(name, source, self.recipe) for name, source in self.chosen.items()}
            y = ModelStream(config, tables, tokens.shape[1]).embed(tokens)
        total = len(config.blocks) + 1
        for layer in range(len(config.blocks)):
            self.progress("calibrate", layer, total)
            x, y = self._block(layer, x, y)
        self.progress("calibrate", total - 1, total)
        self._head(x, y)
        self.progress("calibrate", total, total)
        recipe = replace(self.recipe, activations={**self.recipe.activations, **self.ranges})
        return Calibrated(self.chosen, recipe)

    def _block(self, layer: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        prefix = f"blocks.{layer}"
        exact = self.exact.block(layer)
        self._migrate(exact, prefix, y if self.solving else x)
        for name, _ in exact.named_parameters():
            full = f"{prefix}.{name}"
            self.chosen[full] = self.sources[full] if self.solving else _searched(full, self.sources[full], self.recipe)
        if self.solving:
            y = self._solve(exact, prefix, x, y)
        return self._run_exact(exact, prefix, x), y

    def _migrate(self, block: Block, prefix: str, y: Tensor) -> None:
        method = self.recipe.method
        if not method.migrate and method.smooth is None:
            return
        for pair in (*migrate.norm_pairs(block), *(migrate.inner_pairs(block) if method.migrate else ())):
            weights = [(linears(block)[name].weight.data, self._scheme(f"{prefix}.{name}.weight")) for name in pair.reads]
            rounded = [(weight, scheme) for weight, scheme in weights if scheme.four_bits]
            if self._holds_integers(prefix, pair) or (method.migrate and not rounded):
                continue
            seen = self._statistics(block, prefix, y, [pair.reads[0]])[pair.reads[0]]
            if method.smooth is None:
                scales = migrate.search(rounded, seen.hessian, seen.size, pair)
            else:
                scales = migrate.smooth([weight for weight, _ in weights], seen.peak, method.smooth, pair)
            migrate.apply(block, pair, scales, prefix, self.sources)

    def _holds_integers(self, prefix: str, pair: migrate.Pair) -> bool:
        """Whether the checkpoint's own integers are kept for a weight of the pair: moving scales would lose them."""
        names = [*(f"{prefix}.{name}.weight" for name in pair.reads), *(f"{prefix}.{name}" for name in pair.gives)]
        return any(_kept(self.sources[name], self._scheme(name)) for name in names)

    def _solve(self, exact: Block, prefix: str, x: Tensor, y: Tensor) -> Tensor:
        """Integers for the block's weights, each after those before it; returns what the block then makes of y."""
        block = copy.deepcopy(exact)
        handles = [
            module.register_forward_pre_hook(lambda _, inputs: (_int8_rows(inputs[0]),))
            for name, module in linears(block).items()
            if self._scheme(f"{prefix}.{name}.weight").compute == "dynamic"
        ]
        for names in self._stages(exact):
            statistics = self._statistics(block, prefix, y, names, (exact, x))
            for name in names:
                full = f"{prefix}.{name}.weight"
                source, scheme, module = self.sources[full], self._scheme(full), linears(block)[name]
                seen = statistics.pop(name)
                if scheme.four_bits and not _kept(source, scheme):
                    self.chosen[full] = self.scratch.keep(source, scheme, _solved(full, source, module.weight, seen, scheme))
                stored = read_whole(_as_stored(full, self.chosen[full], self.recipe))
                module.weight = torch.nn.Parameter(stored, requires_grad=False)  # not .data: the source may know nothing of inference mode
        y = self.exact.run(block, y)
        for handle in handles:
            handle.remove()
        return y

    def _stages(self, block: Block) -> Iterator[list[str]]:
        """The projections in the order in which they are reached; those that read nothing of one another together, in HESSIAN_BYTES.

        A router comes before the experts, whose inputs are weighted by what it says.
        """
        names = [name for name in linears(block) if name.startswith("feed_forward.")]
        routers = [name for name in names if name.endswith(".router")]
        last = [name for name in names if name.endswith(".down")]
        first = [name for name in names if name not in routers and name not in last]
        for stage in (["attention.qkv"], ["attention.output"], routers, first, last):
            room = max(1, HESSIAN_BYTES // (8 * linears(block)[stage[0]].weight.shape[1] ** 2)) if stage else 1
            for start in range(0, len(stage), room):
                yield stage[start : start + room]

    def _statistics(
        self, block: Block, prefix: str, y: Tensor, names: Sequence[str], against: tuple[Block, Tensor] | None = None
    ) -> dict[str, InputStatistics]:
        found = gather(self.exact, block, y, names, self.text.valid, against)
        for name, seen in found.items():
            _require_finite(f"{prefix}.{name}.weight", seen)
        return found

    def _run_exact(self, block: Block, prefix: str, x: Tensor) -> Tensor:
        """What the exact block makes of x; the ranges of its static projections are noted on the way."""
        if not self.measuring:
            return self.exact.run(block, x)
        names = {f"{prefix}.{name}.weight": module.weight for name, module in linears(block).items()}
        recorder = RangeRecorder({name: weight for name, weight in names.items() if self.recipe.lacks_ranges(name)})

        def count(rows: slice) -> None:
            recorder.counted = self.text.valid[rows]

        try:
            with recorder:
                out = self.exact.run(block, x, before=count)
        except OverflowingLinearError as error:
            raise _overflow(error.name) from error
        self.ranges |= recorder.ranges
        return out

    def _head(self, x: Tensor, y: Tensor) -> None:
        name = "embedding.weight" if self.config.tied_head else "lm_head.weight"
        source, scheme = self.sources[name], self._scheme(name)
        if not self.solving:
            self.chosen[name] = _searched(name, source, self.recipe)
        if not self.solving or not scheme.four_bits or _kept(source, scheme):
            return
        statistics, valid = InputStatistics.empty(source.shape[1], missing=True), self.text.valid
        for rows, read, exact in zip(row_slices(len(y)), self.exact.head_inputs(y), self.exact.head_inputs(x), strict=True):
            counted = _int8_rows(read[valid[rows]]) if scheme.compute == "dynamic" else read[valid[rows]]
            statistics.add(counted, exact[valid[rows]])
        seen = statistics.finish()
        _require_finite(name, seen)
        if self.config.tied_head:  # the table is looked up as well, where each row's error counts as it is
            seen.hessian += torch.eye(len(seen.hessian)) * (LOOKUP_SHARE * seen.hessian.diagonal().mean())
        solved = []
        for start in range(0, source.shape[0], step := max(1, (1 << 24) // source.shape[1])):
            weight = read_rows(source, start, min(start + step, source.shape[0]))
            solved.append(_solved(name, source, weight, seen, scheme))
        self.chosen[name] = self.scratch.keep(source, scheme, concatenate(solved))

    def _scheme(self, name: str) -> Scheme:
        scheme = self.recipe.scheme_for(name, self.sources[name].shape)
        scheme.check(name, self.sources[name].shape)
        return scheme


def _solved(name: str, source: WeightSource, weight: Tensor, seen: InputStatistics, scheme: Scheme) -> IntegerRows:
    """Integers of a weight [R, C], or of some of its rows, that also make good what was lost before it."""
    assert seen.missing is not None
    try:
        return gptq.solve(gptq.carry_error(weight, seen.hessian, seen.missing), seen.hessian, scheme).rows
    except RecipeError as error:
        raise RecipeError(f"{source.origin(0)} (weight {name}): {error}") from error


def _int8_rows(x: Tensor) -> Tensor:
    """Activations [..., C] as the runtime quantizes them: int8 with a scale and a zero point for each row."""
    low, high = x.amin(-1, keepdim=True).clamp_max(0), x.amax(-1, keepdim=True).clamp_min(0)
    scale = ((high - low) / 255).clamp_min(1e-12)
    zero = torch.round(-128 - low / scale)
    return (torch.clamp(torch.round(x / scale) + zero, -128, 127) - zero) * scale


def _require_finite(name: str, seen: InputStatistics) -> None:
    if not (seen.hessian.isfinite().all() and (seen.missing is None or seen.missing.isfinite().all())):
        raise _overflow(name)


def _overflow(name: str) -> CheckpointError:
    return CheckpointError(f"calibration: what {name} reads or gives is not finite: the checkpoint's weights overflow on this text")
