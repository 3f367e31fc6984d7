"""The plan of weights: which checkpoint tensors every parameter comes from. Total both ways, by names and shapes."""

import fnmatch
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flatlm.errors import CheckpointError
from flatlm.layers.config import ModelConfig
from flatlm.quantize.carried import IntegerRows, StoredIntegers, concatenate, merge
from flatlm.utilities.checkpoints.blank import BlankStore
from flatlm.utilities.checkpoints.lora import LoraStore
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.checkpoints.quantized import IntegerStore
from flatlm.utilities.checkpoints.store import TensorStore
from flatlm.utilities.configs.crf_facts import CRF_TENSORS
from flatlm.utilities.kinds.table import kind_of
from flatlm.utilities.weights.slots import Indices, Part, Slot
from flatlm.utilities.weights.tensor_names import TensorNames

__all__ = ["LoadPlan", "ModelLoader", "PlannedWeight", "TensorNames"]

MAX_PROBLEMS_LISTED = 12
NEAR_ROWS = 8
"""Rows that lie at most so far apart are read in one go, those between them too."""


class PlannedWeight:
    """A parameter, readable by rows straight from the checkpoint's files. What the exporter calls a weight source."""

    def __init__(self, slot: Slot, checkpoint: TensorStore) -> None:
        self.slot = slot
        self._checkpoint = checkpoint
        self._lock = threading.Lock()
        self._matrix: tuple[Part, Tensor] | None = None  # the part that was last read whole, until all its rows are taken
        self._taken = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.slot.shape

    @property
    def sources(self) -> tuple[str, ...]:
        """The checkpoint's tensors that it is made of."""
        return tuple(dict.fromkeys(part.tensor for part in self.slot.parts))

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) in the stored dtype (the widest, where parts differ; float32, where numbers are added)."""
        if self.slot.own_shape is not None:  # a matrix of which each part is a row
            return torch.stack([self._read(part, 0, part.taken[0]) for part in self.slot.parts[start:stop]])
        pieces = [self._read(part, low, high) for part, low, high in self._within(start, stop)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def origin(self, row: int) -> str:
        """The file and tensor that a row comes from."""
        for part in self.slot.parts:
            count = 1 if self.slot.own_shape is not None else part.taken[0]
            if row < count:
                return f"{self._checkpoint.tensors[part.tensor].file}: tensor {part.tensor}"
            row -= count
        raise IndexError(row)

    def stored_integers(self) -> StoredIntegers | None:
        """What the checkpoint holds of it as integers; None where it holds floats."""
        if not isinstance(self._checkpoint, IntegerStore):
            return None
        stored = merge([self._checkpoint.stored_integers(part.tensor) for part in self.slot.parts])
        if stored is None or (
            self.slot.own_shape is None and not any(part.transposed or part.expert is not None or part.offset for part in self.slot.parts)
        ):
            return stored
        return replace(stored, obstacle=stored.obstacle or "not rows of the stored weight")

    def integer_rows(self, start: int, stop: int) -> IntegerRows:
        """Rows [start, stop) as the checkpoint stores them."""
        assert isinstance(self._checkpoint, IntegerStore)
        pieces = []
        for part, low, high in self._within(start, stop):
            indices = np.arange(low, high) if part.rows is None else part.rows[low:high]
            lowest = int(indices.min())
            read = self._checkpoint.integer_rows(part.tensor, lowest, int(indices.max()) + 1)
            chosen = torch.from_numpy(indices - lowest)
            pieces.append(read if part.rows is None else IntegerRows(read.integers[chosen], read.scales[chosen]))
        return concatenate(pieces)

    def _within(self, start: int, stop: int) -> Iterator[tuple[Part, int, int]]:
        """The parts that the rows [start, stop) lie in, and which of each part's rows they are."""
        first = 0
        for part in self.slot.parts:
            low, high = max(start - first, 0), min(stop - first, part.taken[0])
            if low < high:
                yield part, low, high
            first += part.taken[0]

    def _read(self, part: Part, start: int, stop: int) -> Tensor:
        if part.transposed or part.expert is not None:
            matrix = self._whole(part, stop - start)
            values = matrix[start:stop] if part.rows is None else matrix[torch.from_numpy(part.rows[start:stop])]
        elif part.rows is None:
            values = self._checkpoint.rows(part.tensor, start, stop)
        else:
            values = self._gather(part.tensor, part.rows[start:stop])
        return values.to(torch.float32) + part.offset if part.offset else values

    def _gather(self, tensor: str, rows: Indices) -> Tensor:
        """The rows of these indices, in their order, in as few reads as they lie together."""
        ascending = np.sort(rows)
        runs = np.split(ascending, np.flatnonzero(np.diff(ascending) > NEAR_ROWS) + 1)
        first = np.array([run[0] for run in runs])
        read = torch.cat([self._checkpoint.rows(tensor, int(run[0]), int(run[-1]) + 1) for run in runs])
        begins = np.cumsum([0, *(run[-1] + 1 - run[0] for run in runs[:-1])])
        which = np.searchsorted(first, rows, side="right") - 1
        return read[torch.from_numpy(rows - first[which] + begins[which])]

    def _whole(self, part: Part, count: int) -> Tensor:
        """The part's matrix, of which `count` rows are taken now: read once, and kept until all are taken, whatever their order.

        What is stored by columns cannot be read by rows.
        """
        with self._lock:
            if self._matrix is None or self._matrix[0] is not part:
                if part.expert is None:
                    stored = self._checkpoint.read(part.tensor)
                else:
                    stored = self._checkpoint.rows(part.tensor, part.expert, part.expert + 1)[0]
                self._matrix = (part, stored.T.contiguous() if part.transposed else stored)
                self._taken = 0
            matrix = self._matrix[1]
            self._taken += count
            if self._taken >= part.taken[0]:
                self._matrix = None
            return matrix


@dataclass(frozen=True)
class LoadPlan:
    """Every parameter's source, and the checkpoint tensors that are left out on purpose."""

    weights: Mapping[str, PlannedWeight]
    ignored: tuple[str, ...]

    def parameters(self) -> int:
        """How many numbers the model has; what several rows share, as one norm of all heads, counts once."""
        return sum(int(math.prod(part.taken)) for weight in self.weights.values() for part in dict.fromkeys(weight.slot.parts))


class ModelLoader:
    """Plans and loads a checkpoint by a family's tensor names.

    `ModelLoader(directory, TENSOR_NAMES).load(model)` fills an eager model; `plan(config)` is what an export reads by.
    """

    def __init__(self, checkpoint: TensorStore | str | Path, names: TensorNames) -> None:
        self.checkpoint = open_checkpoint(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint
        self.names = _resolve_transposed(resolve_prefix(names, self.checkpoint.tensors), self.checkpoint.tensors)

    def fit(self, config: Any) -> Any:
        """The configuration of the model with the checkpoint's adapter merged, which may untie the head or widen the vocabulary."""
        if not isinstance(self.checkpoint, LoraStore) or not isinstance(config, ModelConfig):
            return config
        return self.checkpoint.fit(config, embedding=f"{self.names.embedding}.weight", head=f"{self.names.lm_head}.weight")

    def plan(self, config: Any) -> LoadPlan:
        """Raises one CheckpointError that lists every missing, misshapen, unreadable or unused tensor, before anything is read."""
        return kind_of(config).load_plan(config, self.checkpoint, self.names)

    def load(self, model: nn.Module, *, dtype: torch.dtype = torch.float32) -> LoadPlan:
        """Give every parameter of an eager model (also one built on the meta device) its values, as `dtype`."""
        plan = self.plan(model.config)
        load_weights(model, plan, dtype=dtype)
        return plan


def load_weights(model: nn.Module, plan: LoadPlan, *, dtype: torch.dtype = torch.float32) -> None:
    """Give every parameter of an eager model its values by a plan, as `dtype`."""
    parameters = dict(model.named_parameters())  # a tied head is listed once
    if parameters.keys() != plan.weights.keys():
        raise CheckpointError(f"the model and its plan differ in {sorted(parameters.keys() ^ plan.weights.keys())}")
    state = {name: weight.rows(0, weight.shape[0]).to(dtype) for name, weight in plan.weights.items()}
    model.load_state_dict(state, strict=False, assign=True)
    model.tie()  # type: ignore[operator]
    model.requires_grad_(False)


def plan_slots(
    slots: Sequence[Slot], checkpoint: TensorStore, names: TensorNames, *, ignored: Sequence[str] = (), vocab_size: int | None = None
) -> LoadPlan:
    """The plan that the slots make up.

    `ignored`: patterns of tensors that are left out, beside those of `names`; `vocab_size`: how many rows the embedding should have.
    Raises one CheckpointError that lists every missing, misshapen, unreadable or unused tensor.
    """
    if isinstance(checkpoint, BlankStore):
        checkpoint.provide(slots)
    used = {part.tensor for slot in slots for part in slot.parts}
    rest = [name for name in checkpoint.tensors if name not in used]
    patterns = [*names.ignored, *ignored, *CRF_TENSORS]  # a CRF is no part of the graph: the manifest has it
    zeros = checkpoint.zero_biases() if isinstance(checkpoint, IntegerStore) else frozenset()
    left_out = tuple(name for name in rest if name in zeros or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
    problems = list(dict.fromkeys(_problems(slots, checkpoint)))
    problems += [f"{name} {list(checkpoint.tensors[name].shape)} is not used by the model" for name in rest if name not in left_out]
    if problems:
        raise disagreement(checkpoint, [*problems, *_hints(checkpoint, names, vocab_size)])
    return LoadPlan({slot.name: PlannedWeight(slot, checkpoint) for slot in slots}, left_out)


def disagreement(checkpoint: TensorStore, problems: Sequence[str]) -> CheckpointError:
    """One error for all that is wrong between a configuration and the weights."""
    more = f"\n  ... and {len(problems) - MAX_PROBLEMS_LISTED} more" if len(problems) > MAX_PROBLEMS_LISTED else ""
    listed = "".join(f"\n  {problem}" for problem in problems[:MAX_PROBLEMS_LISTED])
    return CheckpointError(f"{checkpoint.directory}: config.json and the weights do not agree:{listed}{more}")


def _problems(slots: Iterable[Slot], checkpoint: TensorStore) -> Iterator[str]:
    tensors = checkpoint.tensors
    for slot in slots:
        for part in slot.parts:
            if part.tensor not in tensors:
                yield f"{part.tensor} {list(part.shape)} is missing (needed for {slot.name})"
            elif tensors[part.tensor].shape != part.shape:
                yield f"{part.tensor} has shape {list(tensors[part.tensor].shape)}, the configuration asks for {list(part.shape)}"
            elif not tensors[part.tensor].dtype.is_floating_point:
                yield f"{part.tensor} is {tensors[part.tensor].dtype}, not a floating-point type"


def _hints(checkpoint: TensorStore, names: TensorNames, vocab_size: int | None) -> list[str]:
    """What to do about a fine-tune whose embedding has grown and whose config.json has not."""
    record = checkpoint.tensors.get(f"{names.embedding}.weight")
    if record is None or vocab_size is None or len(record.shape) != 2 or record.shape[0] == vocab_size:
        return []
    return [f"the embedding has {record.shape[0]} rows: if tokens were added to the model, set vocab_size to that in config.json"]


def _resolve_transposed(names: TensorNames, tensors: Mapping[str, Any]) -> TensorNames:
    """Not transposed where a fused projection's tensor is [3D, D]: FlagAI saves what transformers keeps as [D, 3D] as linears."""
    if not names.transposed or names.attn_fused_qkv_proj is None:
        return names
    record = tensors.get(f"{names.attn_fused_qkv_proj.format(0)}.weight")
    as_linears = record is not None and len(record.shape) == 2 and record.shape[0] > record.shape[1]
    return replace(names, transposed=False) if as_linears else names


def resolve_prefix(names: TensorNames, tensors: Iterable[str]) -> TensorNames:
    """The names as the checkpoint at hand begins them: the family's own, or the first of its other prefixes that has the embedding."""
    present = set(tensors)
    if f"{names.embedding}.weight" in present:
        return names
    for written, found in names.prefixes:
        other = names.renamed(written, found)
        if f"{other.embedding}.weight" in present:
            return other
    return names
