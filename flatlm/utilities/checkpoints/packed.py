"""What the quantized forms share: a weight as integers on a grid of scales, how its words are unpacked, and how a form's settings are read.

Legend: R rows (outputs), C columns (inputs), G groups of a row's columns.
"""

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flatlm.errors import CheckpointError, ConfigError
from flatlm.quantize.carried import IntegerRows, StoredIntegers, measure_scales
from flatlm.utilities.checkpoints.files import TensorRecord
from flatlm.utilities.checkpoints.store import TensorStore
from flatlm.utilities.configs.config_reader import ConfigReader

AGAIN = "download the checkpoint again, or take the unquantized one"


@dataclass(frozen=True)
class Grid:
    """For some rows: value = (integer - zero) * scale + offset. All [r, G]; None: zeros.

    `scales` and `offsets` are float32; `zeros` is of any kind, on the integers' own scale, which is centred at 0.
    """

    scales: Tensor
    zeros: Tensor | None = None
    offsets: Tensor | None = None


class QuantizedMatrix(ABC):
    """One weight of a quantized checkpoint. A form says where the integers, the grid and the groups of the columns are."""

    def __init__(self, name: str, store: TensorStore, shape: tuple[int, int], *, bits: int, group_size: int) -> None:
        """`group_size`: columns that share a scale; C or more: all of a row."""
        self.name, self.store, self.shape, self.bits = name, store, shape, bits
        self.group_size = min(group_size, shape[1])
        self.groups = math.ceil(shape[1] / self.group_size)
        self._lock = threading.Lock()
        self._column_groups: Tensor | None = None
        self._stored: StoredIntegers | None = None

    @property
    @abstractmethod
    def members(self) -> tuple[str, ...]:
        """The tensors of the checkpoint that it is made of. The first holds the integers."""

    @abstractmethod
    def integers(self, start: int, stop: int) -> Tensor:
        """Rows as stored, centred at 0: int8 [r, C]."""

    @abstractmethod
    def grid(self, start: int, stop: int) -> Grid:
        """The rows' scales and zeros."""

    def read_column_groups(self) -> Tensor | None:
        """The group of each column, int64 [C]; None where groups are of neighbours."""
        return None

    @property
    def file(self) -> Path:
        return self.store.tensors[self.members[0]].file

    def error(self, member: str, what: str) -> CheckpointError:
        """About one of its tensors."""
        return CheckpointError(f"{self.store.tensors[member].file}: tensor {member} {what}; {AGAIN}")

    def in_range(self, member: str, integers: Tensor) -> Tensor:
        """The integers (int8) of a tensor that leaves room for larger ones, once none is found to be too large for its bits."""
        half = 2 ** (self.bits - 1)
        if self.bits < 8 and integers.numel() and not -half <= int(integers.min()) <= int(integers.max()) < half:
            raise self.error(member, f"has integers outside [{-half}, {half - 1}], though it is said to have {self.bits} bits")
        return integers

    def rows(self, start: int, stop: int) -> Tensor:
        """The exact values, float32 [r, C], rounded once."""
        grid, columns, values = self.grid(start, stop), self.column_groups(), self.integers(start, stop).to(torch.float32)

        def spread(numbers: Tensor) -> Tensor:
            if columns is not None:
                return numbers[:, columns]
            return numbers.repeat_interleave(self.group_size, 1) if numbers.shape[1] > 1 else numbers

        if grid.zeros is not None:
            values -= spread(grid.zeros.to(torch.float32))
        values *= spread(grid.scales)
        return values if grid.offsets is None else values.add_(spread(grid.offsets))

    def column_groups(self) -> Tensor | None:
        """The group of each column, or None where group g is of the columns [g * group_size, (g + 1) * group_size)."""
        with self._lock:
            if self._column_groups is None:
                plain = torch.arange(self.shape[1]) // self.group_size
                found = self.read_column_groups()
                if found is None or torch.equal(found, plain):
                    found = torch.empty(0, dtype=torch.int64) if self.shape[1] % self.group_size == 0 else plain
                self._column_groups = found
            return self._column_groups if self._column_groups.numel() else None

    def stored_integers(self) -> StoredIntegers:
        """What a file could carry over. Reads the grid, once. CheckpointError where a scale is not finite."""
        ordered = self.column_groups() is None
        with self._lock:
            if self._stored is None:
                grid = self.grid(0, self.shape[0])
                finite = all(bool(torch.isfinite(part).all()) for part in (grid.scales, grid.zeros, grid.offsets) if part is not None)
                if not finite:
                    raise CheckpointError(f"{self.file}: tensor {self.members[0]} has scales or zeros that are not finite; {AGAIN}")
                symmetric = not any(bool(part.any()) for part in (grid.zeros, grid.offsets) if part is not None)
                obstacle = "asymmetric" if not symmetric else None if ordered else "columns in no group order (act-order)"
                block = None if self.groups == 1 else self.group_size
                self._stored = measure_scales(StoredIntegers(self.bits, block, obstacle), grid.scales)
            return self._stored

    def integer_rows(self, start: int, stop: int) -> IntegerRows:
        return IntegerRows(self.integers(start, stop), self.grid(start, stop).scales)


class WholeTensors:
    """Whole tensors, kept while they are read piece by piece: for forms whose rows lie across the file. Several threads may ask.

    What is kept stays below twice the largest tensor of the checkpoint's integers.
    """

    def __init__(self, store: TensorStore) -> None:
        self._store, self._lock = store, threading.Lock()
        self._kept: dict[str, Tensor] = {}
        self._limit = 2 * max((nbytes(record) for record in store.tensors.values() if not record.dtype.is_floating_point), default=0)

    def get(self, name: str) -> Tensor:
        with self._lock:
            tensor = self._kept.pop(name, None)
            if tensor is None:
                needed = nbytes(self._store.tensors[name])
                while self._kept and sum(kept.nbytes for kept in self._kept.values()) + needed > self._limit:
                    del self._kept[next(iter(self._kept))]  # the one that was asked for longest ago
                tensor = self._store.read(name)
            self._kept[name] = tensor
            return tensor

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()


def nbytes(record: TensorRecord) -> int:
    return math.prod(record.shape) * record.dtype.itemsize


def unpack(words: Tensor, bits: int) -> Tensor:
    """Numbers of 2, 4 or 8 bits out of int32 words [n, W], the lowest bits first: uint8 [n, W * 32 / bits]."""
    if words.stride(-1) != 1 or not words.is_contiguous():  # one column counts as contiguous, whatever its stride
        words = words.clone(memory_format=torch.contiguous_format)
    packed = words.view(torch.uint8)
    if bits == 8:
        return packed
    parts = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, -1).view(packed.shape[0], packed.shape[1] * len(parts))


def centred(numbers: Tensor, bits: int) -> Tensor:
    """Unsigned numbers (uint8) less half their range, as int8."""
    shifted: Tensor = numbers - 2 ** (bits - 1)
    return shifted.view(torch.int8)


def matrix_shape(record: TensorRecord, weight: str) -> tuple[int, int]:
    """The shape of the tensor that holds a weight's integers. CheckpointError unless it is a matrix."""
    if len(record.shape) != 2 or min(record.shape) < 1:
        raise CheckpointError(
            f"{record.file}: tensor {record.name} has shape {list(record.shape)}, and the quantized weight {weight} needs a matrix; {AGAIN}"
        )
    return record.shape[0], record.shape[1]


def check_member(
    store: TensorStore, weight: str, member: str, shapes: Iterable[tuple[int, ...]], dtypes: Iterable[torch.dtype] | None = None
) -> TensorRecord:
    """The record of a tensor that `weight` needs. CheckpointError unless it is there, in one of the shapes and dtypes (None: any float)."""
    record = store.tensors.get(member)
    if record is None:
        raise CheckpointError(f"{store.directory}: tensor {member} is missing, which the quantized weight {weight} needs; {AGAIN}")
    shapes = list(shapes)
    if record.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise CheckpointError(
            f"{record.file}: tensor {member} has shape {list(record.shape)}, where the quantized weight {weight} needs {wanted}: "
            f"it and quantization_config in config.json do not agree; {AGAIN}"
        )
    if record.unsupported or (record.dtype not in dtypes if dtypes is not None else not record.dtype.is_floating_point):
        kinds = "a float type" if dtypes is None else " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        found = record.unsupported or str(record.dtype).removeprefix("torch.")
        raise CheckpointError(f"{record.file}: tensor {member} is {found}, where the quantized weight {weight} needs {kinds}; {AGAIN}")
    return record


def group_size_of(settings: ConfigReader, key: str = "group_size") -> int | None:
    """A positive number of columns, or None for -1 or nothing: a whole row."""
    value = settings.values.get(key)
    settings.skip(key)
    if value is None or value == -1:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise settings.wrong(key, "must be a positive whole number, or -1 for a scale per channel")
    return value


def bits_of(settings: ConfigReader, key: str, allowed: tuple[int, ...]) -> int:
    bits = settings.positive_int(key)
    if bits not in allowed:
        raise settings.wrong(key, f"is not supported; supported are {', '.join(map(str, allowed))}")
    return bits


def finish(settings: ConfigReader, inert: Iterable[str] = ()) -> None:
    """Refuse, by name, a key that was not read and is not known to leave the numbers alone."""
    if listed := settings.unread(inert):
        raise ConfigError(
            f"{settings.source}: has keys that FlatLM does not read and that may change the weights: {listed}; "
            "take a checkpoint quantized without them, or the unquantized one"
        )


Opener = Callable[[TensorStore, ConfigReader], list[QuantizedMatrix]]
"""Finds a checkpoint's quantized weights. Raises ConfigError for settings that it does not know, CheckpointError for bad tensors."""
