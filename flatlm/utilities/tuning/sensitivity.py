"""How much each unit's scheme costs: KL of the logits from the exact model's on calibration text, when that unit alone is quantized.

A block's weights are in memory at a time. For each block, every variant of it (a unit by a scheme) makes its own activations of the exact
ones before it, and all variants go on together through the rest of the model: L (L + 1) / 2 blocks are run, times the variants of one.
What is known is written after each block, so that an interrupted search goes on where it was.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from flatlm.convert.in_memory import InMemory
from flatlm.convert.weights import WeightSource
from flatlm.layers.block import Block
from flatlm.layers.config import ModelConfig
from flatlm.layers.model import final_logits
from flatlm.progress import Progress
from flatlm.quantize import gptq
from flatlm.quantize.encode import as_stored
from flatlm.quantize.scale_search import round_rows
from flatlm.quantize.schemes import Scheme, get_scheme
from flatlm.utilities.calibration.statistics import InputStatistics, gather
from flatlm.utilities.calibration.stream import ModelStream, linears, row_slices
from flatlm.utilities.calibration.text import CalibrationText
from flatlm.utilities.tuning.keyed_file import KeyedFile
from flatlm.utilities.tuning.units import Unit, possible, units

Costs = dict[str, dict[str, float]]
"""KL in nats by a unit's pattern and a scheme."""
LOGITS_AT_ONCE = 1 << 24


class Sensitivity:
    """`measure()` fills `file`: what was measured for one checkpoint, text and list of schemes is not measured again."""

    def __init__(
        self,
        config: ModelConfig,
        sources: Mapping[str, WeightSource],
        text: CalibrationText,
        schemes: Sequence[str],
        file: KeyedFile,
        progress: Progress | None = None,
    ) -> None:
        self.config, self.sources, self.text, self.file = config, sources, text, file
        self.units = list(units(config))
        self.schemes = {unit.pattern: possible(unit, schemes, sources) for unit in self.units}
        self.stream = ModelStream(config, sources, text.tokens.shape[1])
        self.head_name = "embedding.weight" if config.tied_head else "lm_head.weight"
        self._progress = progress or (lambda stage, done, total: None)
        self._done = 0
        self._total = sum(self._runs(unit) for unit in self.units)

    @torch.inference_mode()
    def measure(self) -> Costs:
        """KL for every unit and scheme, from the file where they are there."""
        missing = [unit for unit in self.units if set(self.file.values.get(unit.pattern, ())) != set(self.schemes[unit.pattern])]
        if not missing:
            return self.file.values
        x = self.stream.embed(self.text.tokens)
        final = x
        for layer in range(len(self.config.blocks)):
            final = self.stream.run(self.stream.block(layer), final)
        self.final = final
        self._tick(sum(self._runs(unit) for unit in self.units if unit not in missing))
        outside = [unit for unit in missing if unit.layer is None]
        if outside:
            self.file.add(self._outside(outside))
        for layer in range(len(self.config.blocks)):
            block = self.stream.block(layer)
            own = [unit for unit in missing if unit.layer == layer]
            if own:
                self.file.add(self._inside(block, own, layer, x))
            x = self.stream.run(block, x)
        return self.file.values

    def _runs(self, unit: Unit) -> int:
        """The block runs that measuring it takes, and one for the logits."""
        after = len(self.config.blocks) - (unit.layer or 0) if unit.weights[0] != "lm_head.weight" else 0
        return len(self.schemes[unit.pattern]) * (after + 1)

    def _tick(self, runs: int) -> None:
        self._done += runs
        self._progress("sensitivity", self._done, self._total)

    def _inside(self, block: Block, own: list[Unit], layer: int, x: Tensor) -> Costs:
        valid = self.text.valid
        variants: list[tuple[str, str, Tensor]] = []
        for unit in own:
            statistics = gather(self.stream, block, x, unit.projections, valid)
            for scheme in self.schemes[unit.pattern]:
                changed = copy.deepcopy(block)
                for name in unit.projections:
                    weight = linears(changed)[name].weight
                    weight.data = quantized(weight.data, get_scheme(scheme), statistics[name])
                variants.append((unit.pattern, scheme, self.stream.run(changed, x)))
                self._tick(1)
        return self._through(variants, layer + 1)

    def _outside(self, own: list[Unit]) -> Costs:
        """The tables: the embedding's variants go through all blocks, the head's change only the logits. A tied one does both."""
        found: Costs = {}
        for unit in own:
            source, name = self.sources[unit.weights[0]], unit.weights[0]
            weight = source.rows(0, source.shape[0]).to(torch.float32)
            statistics = self._head_statistics() if name == self.head_name else None
            for scheme in self.schemes[unit.pattern]:
                changed = quantized(weight, get_scheme(scheme), statistics)
                head = changed if name == self.head_name else None
                if name == "embedding.weight":
                    y = ModelStream(self.config, {**self.sources, name: InMemory(changed)}, self.text.tokens.shape[1]).embed(
                        self.text.tokens
                    )
                    costs = self._through([(unit.pattern, scheme, y)], 0, head)
                else:
                    costs = self._through([(unit.pattern, scheme, self.final)], len(self.config.blocks), head)
                found.setdefault(unit.pattern, {}).update(costs[unit.pattern])
        return found

    def _head_statistics(self) -> InputStatistics:
        statistics = InputStatistics.empty(self.config.embedding_dim, missing=False)
        for rows, read in zip(row_slices(len(self.final)), self.stream.head_inputs(self.final), strict=True):
            statistics.add(read[self.text.valid[rows]])
        statistics = statistics.finish()
        if self.config.tied_head:
            statistics.hessian += torch.eye(len(statistics.hessian)) * statistics.hessian.diagonal().mean()
        return statistics

    def _through(self, variants: list[tuple[str, str, Tensor]], first: int, head: Tensor | None = None) -> Costs:
        """Variants' activations through the blocks from `first` on, and the KL of their logits; `head`: another weight for theirs."""
        activations = [y for _, _, y in variants]
        for layer in range(first, len(self.config.blocks)):
            block = self.stream.block(layer)
            for index, y in enumerate(activations):
                activations[index] = self.stream.run(block, y)
                self._tick(1)
        exact = self.stream.whole(self.head_name)
        bias = self.stream.whole("lm_head.bias") if self.config.head_bias else None
        found: Costs = {}
        for (pattern, scheme, _), y in zip(variants, activations, strict=True):
            found.setdefault(pattern, {})[scheme] = self._kl(y, exact, exact if head is None else head, bias)
            self._tick(1)
        return found

    def _kl(self, y: Tensor, exact: Tensor, head: Tensor, bias: Tensor | None) -> float:
        total, count = 0.0, 0
        for rows, read, truth in zip(row_slices(len(y)), self.stream.head_inputs(y), self.stream.head_inputs(self.final), strict=True):
            valid = self.text.valid[rows]
            step = max(1, LOGITS_AT_ONCE // head.shape[0])
            for own, other in zip(torch.split(read[valid], step), torch.split(truth[valid], step), strict=True):
                p = torch.log_softmax(final_logits(functional.linear(other, exact, bias), self.config), -1)
                q = torch.log_softmax(final_logits(functional.linear(own, head, bias), self.config), -1)
                total += float((p.exp() * (p - q)).sum(dtype=torch.float64))
                count += len(own)
        return max(total / count, 0.0)


def quantized(weight: Tensor, scheme: Scheme, statistics: InputStatistics | None) -> Tensor:
    """The weight [R, C] float32 that is read where the scheme is used: solved for by statistics, if given."""
    if not scheme.four_bits:
        return as_stored(weight, scheme)
    found = round_rows(weight, scheme, "scale_search") if statistics is None else gptq.solve(weight, statistics.hessian, scheme).rows
    return found.values()
