"""What an author's `load_weights` does, recorded on tensors without values: which rows of which parameter are which tensor's.

Checkpoint tensors and parameters are on the meta device, where a view still knows its storage, offset and strides. So a copy from a view
of a tensor to a view of a parameter says exactly which rows go where, however the author cut them out. What is computed (a sum, a
permutation) is kept as a tape of operators, and run again on the real tensors for that parameter alone, when its values are wanted.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from flatlm.utilities.checkpoints.store import TensorStore
from flatlm.utilities.weights.loader import PlannedWeight
from flatlm.utilities.weights.slots import Part, Slot

_aten = torch.ops.aten
_SAME_VALUES = frozenset({_aten.clone.default, _aten._to_copy.default, _aten.contiguous.default})
"""What gives a new tensor the values of another."""


@dataclass(frozen=True)
class View:
    """Which elements of a storage a tensor is."""

    storage: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "View":
        return cls(_storage(tensor), int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()))


@dataclass(frozen=True)
class Operator:
    """One call of the tape: `reads` and `writes` are storages; `kept` holds what they belong to."""

    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Tensor, ...]
    reads: frozenset[int]
    writes: frozenset[int]

    def mutated(self) -> list[Tensor]:
        """The tensors that it changes in place."""
        arguments = self.function._schema.arguments
        given = [self.args[index] if index < len(self.args) else self.kwargs.get(each.name) for index, each in enumerate(arguments)]
        changed = [value for value, each in zip(given, arguments, strict=True) if each.alias_info is not None and each.alias_info.is_write]
        return [leaf for leaf in tree_leaves(changed) if isinstance(leaf, Tensor)]


class ValuesAskedError(Exception):
    """An author's code asked for a tensor's values, or put some into a tensor of its own."""


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, operators that see a tensor on the meta device are noted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[Operator] = []
        self.writers: defaultdict[int, list[Operator]] = defaultdict(list)
        """The operators that write to a storage, in order."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(tensor.is_meta for tensor in tensors):
            return func(*args, **kwargs)
        given = {name: torch.device("meta") if isinstance(value, torch.device) else value for name, value in kwargs.items()}
        try:
            out = func(*tree_map(_without_values, args), **tree_map(_without_values, given))
        except NotImplementedError as error:
            raise ValuesAskedError(f"{func} needs a tensor's values, which are not read while weights are planned") from error
        outputs = tuple(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        operator = Operator(func, args, kwargs, outputs, frozenset(map(_storage, tensors)), frozenset())
        changed = operator.mutated()
        if not all(tensor.is_meta for tensor in changed):
            raise ValuesAskedError(f"{func} writes into a tensor that is neither a parameter nor made from one that was loaded")
        known = operator.reads - frozenset(map(_storage, changed))
        writes = frozenset(map(_storage, [*outputs, *changed])) - known
        self.operators.append(Operator(func, args, kwargs, outputs, operator.reads, writes))
        for storage in writes:
            self.writers[storage].append(self.operators[-1])
        return out

    def behind(self, storages: Iterable[int]) -> tuple[list[Operator], frozenset[int]]:
        """The operators that what the storages hold in the end depends on, in order, and all storages that those touch."""
        needed, found = set(storages), []
        for operator in reversed(self.operators):
            if operator.writes & needed:
                found.append(operator)
                needed |= operator.reads | operator.writes
        return found[::-1], frozenset(needed)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _without_values(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) and not value.is_meta else value


@dataclass
class Recording:
    """What filled a module's parameters. `problems`: what the author's code raised, with the tensor at hand."""

    tape: Tape
    sources: dict[int, str]
    """The checkpoint's tensors, by storage."""
    problems: list[str] = field(default_factory=list)
    _kept: list[Any] = field(default_factory=list)

    def used(self, parameters: Iterable[Tensor]) -> set[str]:
        """The tensors that the parameters depend on."""
        _, needed = self.tape.behind(map(_storage, parameters))
        return {self.sources[storage] for storage in needed if storage in self.sources}

    def missing(self, parameter: Tensor) -> list[tuple[int, int]]:
        """The rows [start, stop) of a parameter that nothing was written to."""
        storage = _storage(parameter)
        if storage in self.sources:
            return []
        writes = self.tape.writers[storage]
        if not writes:
            return [(0, parameter.shape[0])]
        if any(storage not in operator.reads for operator in writes):  # it is the result of an operator
            return []
        filled, rest = np.zeros(parameter.shape[0], bool), 0
        for operator in writes:
            for target in operator.mutated():
                rows = _row_range(View.of(target), View.of(parameter))
                if rows is None:
                    rest += target.numel()
                else:
                    filled[rows[0] : rows[1]] = True
        if rest >= parameter.numel():
            return []
        edges = np.flatnonzero(np.diff(np.concatenate([[True], filled, [True]]).astype(np.int8)))
        return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)) if not rest else []

    def parts(self, parameter: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Part, ...] | None:
        """The parameter as rows of tensors; None where it is computed, or cut otherwise than in rows."""
        view = View.of(parameter)
        if view.storage in self.sources or self._copied(view) is not None:
            parts = [self._part(view, parameter.dim(), shapes)]
        else:
            pieces = self._pieces(view)
            if pieces is None:
                return None
            parts = [self._part(piece, parameter.dim(), shapes) for piece in pieces]
        return None if any(part is None for part in parts) else tuple(part for part in parts if part is not None)

    def _pieces(self, view: View) -> list[View] | None:
        """What was copied into a parameter's rows, from the first row on; None where that is not all that happened to it."""
        placed: list[tuple[int, int, View]] = []
        for operator in self.tape.writers[view.storage]:
            if operator.function is not _aten.copy_.default or not _lossless(operator.args[1], operator.args[0]):
                return None
            target, source = operator.args[0], operator.args[1]
            rows = _row_range(View.of(target), view)
            if rows is None or source.shape != target.shape:
                return None
            placed.append((*rows, View.of(source)))
        placed.sort(key=lambda each: each[0])
        ends = [0, *(stop for _, stop, _ in placed)]
        if any(start != end for (start, _, _), end in zip(placed, ends[:-1], strict=True)) or ends[-1] != view.size[0]:
            return None
        return [source for _, _, source in placed]

    def _copied(self, view: View) -> View | None:
        """The view of another storage that has the same values, where this one is a lossless copy."""
        writes = self.tape.writers[view.storage]
        if len(writes) != 1 or writes[0].function not in _SAME_VALUES or not _lossless(writes[0].args[0], writes[0].outputs[0]):
            return None
        source, copy = View.of(writes[0].args[0]), View.of(writes[0].outputs[0])
        if view.size == copy.size and view.stride == copy.stride and view.offset == copy.offset:
            return source
        if source.stride == copy.stride and copy.offset == 0:
            return View(source.storage, source.offset + view.offset, view.size, view.stride)
        return None

    def _part(self, view: View, dims: int, shapes: Mapping[str, tuple[int, ...]]) -> Part | None:
        """A view of a tensor, or of copies of it, as rows of it."""
        while view.storage not in self.sources:
            behind = self._copied(view)
            if behind is None:
                return None
            view = behind
        if self.tape.writers[view.storage]:  # the author changed the tensor itself
            return None
        name = self.sources[view.storage]
        return _rows_of(view, name, shapes[name]) if len(view.size) == dims else None


def _row_range(target: View, whole: View) -> tuple[int, int] | None:
    """Which rows of a parameter a view of it is, if it is whole rows, one after the other."""
    row = whole.stride[0]
    aligned = target.stride[1:] == whole.stride[1:] and target.size[1:] == whole.size[1:] and len(target.size) == len(whole.size)
    if not aligned or (target.stride[0] != row and target.size[0] > 1) or (target.offset - whole.offset) % row:
        return None
    start = (target.offset - whole.offset) // row
    return start, start + target.size[0]


def _lossless(source: Any, target: Any) -> bool:
    """Can the target's dtype hold all of the source's numbers?"""
    return isinstance(source, Tensor) and torch.promote_types(source.dtype, target.dtype) == target.dtype


def _rows_of(view: View, name: str, shape: tuple[int, ...]) -> Part | None:
    """A view of a tensor as rows of it, of its transpose, or of a slice of its first dimension."""
    strides = tuple(int(np.prod(shape[dim + 1 :], dtype=np.int64)) for dim in range(len(shape)))
    if len(view.size) == len(shape):
        if view.size[1:] == shape[1:] and view.stride[1:] == strides[1:] and not view.offset % strides[0]:
            return _part_of(name, shape, view.offset // strides[0], view.stride[0] / strides[0], view.size[0])
        if len(shape) == 2 and view.size[1] == shape[0] and view.stride[1] == shape[1]:
            return _part_of(name, shape, view.offset, float(view.stride[0]), view.size[0], transposed=True)
    if len(view.size) == 2 and len(shape) == 3:
        expert, offset = divmod(view.offset, strides[0])
        inner = _rows_of(View(view.storage, offset, view.size, view.stride), name, shape[1:])
        return None if inner is None else Part(name, shape, inner.rows, expert, inner.transposed)
    return None


def _part_of(name: str, shape: tuple[int, ...], first: int, step: float, count: int, *, transposed: bool = False) -> Part | None:
    there = shape[1] if transposed else shape[0]
    if count == 1:
        step = 1.0
    if step != int(step) or first + (count - 1) * int(step) >= there:
        return None
    rows = None if first == 0 and step == 1 and count == there else first + int(step) * np.arange(count)
    return Part(name, shape, rows, None, transposed)


class ComputedWeight(PlannedWeight):
    """A parameter that the author's code computes: its part of the tape, run on the real tensors when rows of it are wanted.

    While some of its rows are still to come, its values are kept; the tensors it is made of are not.
    """

    def __init__(self, name: str, parameter: Tensor, recording: Recording, checkpoint: TensorStore) -> None:
        self._operators, storages = recording.tape.behind([_storage(parameter)])
        self._view = View.of(parameter)
        self._sources = {storage: recording.sources[storage] for storage in storages if storage in recording.sources}
        self._recording = recording  # its tensors must live: their storages' addresses are their names
        shape = tuple(parameter.shape)
        super().__init__(Slot(name, (Part(next(iter(self._sources.values()), ""), shape),), shape), checkpoint)
        self._values: Tensor | None = None
        self._waiting = 0

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(self._sources.values())

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop), float32."""
        with self._lock:
            if self._values is None:
                self._values, self._waiting = self._run(), self.shape[0]
            values = self._values[start:stop]
            self._waiting -= stop - start
            if self._waiting <= 0:
                self._values = None
        return values

    def origin(self, row: int) -> str:
        """The tensors that it is computed from."""
        return f"{self._checkpoint.directory}: computed by load_weights from {', '.join(self._sources.values()) or 'no tensor'}"

    def stored_integers(self) -> None:
        return None

    def _run(self) -> Tensor:
        changed = {storage for operator in self._operators for storage in operator.writes}
        bases = {storage: self._checkpoint.read(name).reshape(-1) for storage, name in self._sources.items()}
        bases |= {storage: base.clone() for storage, base in bases.items() if storage in changed}

        def real(value: Any) -> Any:
            if isinstance(value, Tensor) and value.is_meta:
                view = View.of(value)
                if view.storage not in bases:  # a parameter before anything is written to it
                    bases[view.storage] = torch.zeros(value.untyped_storage().nbytes() // value.element_size(), dtype=value.dtype)
                return torch.as_strided(bases[view.storage], view.size, view.stride, view.offset)
            return torch.device("cpu") if isinstance(value, torch.device) else value

        with torch.no_grad():
            for operator in self._operators:
                out = operator.function(*tree_map(real, operator.args), **tree_map(real, dict(operator.kwargs)))
                results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
                for noted, result in zip(operator.outputs, results, strict=True):
                    if _storage(noted) in operator.writes and _storage(noted) not in operator.reads:
                        bases[_storage(noted)] = _laid_out_as(noted, result)
            view = self._view
            return torch.as_strided(bases[view.storage], view.size, view.stride, view.offset).to(torch.float32).clone()


def _laid_out_as(noted: Tensor, result: Tensor) -> Tensor:
    """The storage, flat, of a result whose strides are those that were noted."""
    base = torch.empty(noted.untyped_storage().nbytes() // noted.element_size(), dtype=result.dtype)
    torch.as_strided(base, noted.size(), noted.stride(), noted.storage_offset()).copy_(result)
    return base


def record(
    module: nn.Module, load: Callable[[Iterable[tuple[str, Tensor]]], Any], tensors: Mapping[str, Any], *, after: Callable[[], None]
) -> Recording:
    """Run `load` over stand-ins for the checkpoint's `tensors` (anything with shape and dtype), then `after`.

    What it raises at a tensor is noted as a problem, and the rest goes on without that tensor.
    """
    stand_ins = [(name, torch.empty(tuple(record.shape), dtype=record.dtype, device="meta")) for name, record in tensors.items()]
    tape = Tape()
    recording = Recording(tape, {_storage(tensor): name for name, tensor in stand_ins})
    recording._kept = [stand_ins, list(module.parameters())]
    at = [0]

    def rest() -> Iterator[tuple[str, Tensor]]:
        while at[0] < len(stand_ins):
            at[0] += 1
            yield stand_ins[at[0] - 1]

    finished = False
    while not finished:
        begun = at[0]
        try:
            with torch.no_grad(), tape:
                load(rest())
                after()
            finished = True
        except (Exception, SystemExit) as error:  # whatever an author's code raises
            name, tensor = stand_ins[at[0] - 1] if at[0] > begun else ("", None)
            what = "" if tensor is None else f"{name} {list(tensor.shape)}: "
            recording.problems.append(f"{what}load_weights {_described(error)}")
            finished = at[0] == begun
    return recording


def _described(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"looks for the parameter {error}, which the module does not have"
    text = str(error).strip().splitlines() or [""]
    asked = "; tensors have no values while weights are planned" if "meta" in text[0] else ""
    return f"raises {type(error).__name__}" + (f": {text[0]}" if text[0] else "") + asked
