"""Weights that a calibration has changed or chosen, as sources that the exporter reads like any other."""

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from flatlm.convert.weights import WeightSource, write_all
from flatlm.errors import CheckpointError
from flatlm.quantize.carried import IntegerRows, StoredIntegers
from flatlm.quantize.method import Rounding
from flatlm.quantize.scale_search import round_rows
from flatlm.quantize.schemes import Scheme


def read_rows(source: WeightSource, start: int, stop: int) -> Tensor:
    """Rows [start, stop) as float32. CheckpointError, which names their file and tensor, where they are not finite."""
    rows = source.rows(start, stop).to(torch.float32)
    bad = ~torch.isfinite(rows).reshape(len(rows), -1).all(1)
    if bad.any():
        origin = source.origin(start + int(bad.to(torch.int8).argmax()))
        raise CheckpointError(f"{origin} holds NaN or infinity, which cannot be calibrated: repair the checkpoint")
    return rows


def read_whole(source: WeightSource) -> Tensor:
    """All of a weight, as `read_rows` has it."""
    return read_rows(source, 0, source.shape[0])


@dataclass(frozen=True)
class Changed:
    """A weight whose rows are computed from those of another: `change(rows, start)`, for rows from `start` on."""

    source: WeightSource
    change: Callable[[Tensor, int], Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def rows(self, start: int, stop: int) -> Tensor:
        return self.change(self.source.rows(start, stop).to(torch.float32), start)

    def origin(self, row: int) -> str:
        return self.source.origin(row)


@dataclass(frozen=True)
class _Chosen(ABC):
    """What all have in common whose integers were chosen for the very scheme they are stored by."""

    source: WeightSource
    scheme: Scheme

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def rows(self, start: int, stop: int) -> Tensor:
        """What the integers mean."""
        return self.integer_rows(start, stop).values()

    @abstractmethod
    def integer_rows(self, start: int, stop: int) -> IntegerRows: ...

    def stored_integers(self) -> StoredIntegers:
        return StoredIntegers.of(self.scheme, chosen=True)

    def origin(self, row: int) -> str:
        return self.source.origin(row)


@dataclass(frozen=True)
class Searched(_Chosen):
    """Integers by a search that needs no text, made when they are read: rows are independent of one another."""

    rounding: Rounding

    def integer_rows(self, start: int, stop: int) -> IntegerRows:
        return round_rows(read_rows(self.source, start, stop), self.scheme, self.rounding)


@dataclass(frozen=True)
class Solved(_Chosen):
    """Integers that were solved for, kept in a scratch file."""

    scratch: "Scratch"
    integers_at: int
    scales_at: int

    def integer_rows(self, start: int, stop: int) -> IntegerRows:
        columns = self.shape[1]
        groups = columns // (self.scheme.block_size or columns)
        integers = self.scratch.read(self.integers_at + start * columns, (stop - start, columns), np.dtype(np.int8))
        scales = self.scratch.read(self.scales_at + 4 * start * groups, (stop - start, groups), np.dtype(np.float32))
        return IntegerRows(integers, scales)


class Scratch:
    """A nameless file for solved integers: gone when it is closed, whatever happens to the process."""

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - closed by __exit__
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def keep(self, source: WeightSource, scheme: Scheme, rows: IntegerRows) -> Solved:
        """Write a weight's integers and scales; returns the source that reads them."""
        places = []
        for tensor in (rows.integers, rows.scales.to(torch.float32)):
            places.append(self._end)
            write_all(self._file.fileno(), np.ascontiguousarray(tensor.numpy()), self._end)
            self._end += tensor.nbytes
        return Solved(source, scheme, self, *places)

    def read(self, offset: int, shape: tuple[int, int], dtype: "np.dtype[np.generic]") -> Tensor:
        """A tensor of that shape; safe on several threads."""
        array = np.empty(shape, dtype)
        view, done = memoryview(array).cast("B"), 0  # type: ignore[arg-type]
        while done < len(view):
            done += os.preadv(self._file.fileno(), [view[done:]], offset + done)
        return torch.from_numpy(array)


def scaled(source: WeightSource, *, rows: Tensor | None = None, columns: Tensor | None = None) -> WeightSource:
    """A weight [R, C] or [R] times `rows` [R] and `columns` [C]."""

    def change(values: Tensor, start: int) -> Tensor:
        if columns is not None:
            values = values * columns
        if rows is not None:
            own = rows[start : start + len(values)]
            values = values * (own[:, None] if values.dim() == 2 else own)
        return values

    return Changed(source, change)
