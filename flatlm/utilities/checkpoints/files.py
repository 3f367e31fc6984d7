"""What every kind of weights file shares: the record of a tensor, the open file, and the ways to read a tensor's rows from it.

Reads are `preadv` into memory that the caller owns: nothing is mapped and nothing is kept, so a process holds only the rows it
asked for, and threads may read from one file at once.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import torch

from flatlm.errors import CheckpointError

SAMPLE_BYTES = 4096
"""How much of each tensor goes into `Checkpoint.fingerprint`."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class TensorRecord:
    """A tensor of the checkpoint, as its file's header describes it.

    `unsupported` is None, or the storage format (such as "F8_E4M3") or layout ("sparse") whose values cannot be read. Such a
    tensor is listed; reading it is an error. Its `dtype` is `torch.bits8` where torch has no such dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    unsupported: str | None = None


class Source(Protocol):
    """Where one tensor's values are."""

    def fill(self, out: torch.Tensor, start: int) -> None:
        """Read rows `start`, `start + 1`, ... into `out`: contiguous, on the CPU, of the stored dtype. `start` is 0 for scalars."""

    def sample(self) -> bytes:
        """The first stored bytes, at most SAMPLE_BYTES, for the fingerprint."""


@dataclass(frozen=True)
class Entry:
    """A record and the way to its values."""

    record: TensorRecord
    source: Source


class WeightsFile:
    """One open file of weights, read by position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path}: is not a regular file, so it cannot hold weights")
            self.stream: IO[bytes] = path.open("rb", buffering=0)
        except FileNotFoundError as error:
            hint = "is a link to a file that does not exist" if path.is_symlink() else "does not exist"
            raise CheckpointError(f"{path}: {hint}; download the checkpoint again") from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from error
        self.size = status.st_size
        try:
            self._check_start()
        except BaseException:
            self.close()
            raise
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def _check_start(self) -> None:
        if self.size == 0:
            raise CheckpointError(f"{self.path}: is empty; download the file again")
        if self.read(0, min(self.size, len(_LFS_POINTER))) == _LFS_POINTER:
            raise CheckpointError(
                f"{self.path}: is a Git LFS pointer, not the weights themselves; run `git lfs pull` in the checkpoint's folder, "
                "or download the file itself"
            )

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on."""
        buffer = bytearray(size)
        self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` (of bytes) from `offset` on."""
        done = 0
        try:
            while done < len(view):
                got = os.preadv(self.stream.fileno(), [view[done:]], offset + done)
                if got == 0:
                    raise CheckpointError(
                        f"{self.path}: ends at byte {offset + done}, {len(view) - done} bytes too soon; was it changed while it was read?"
                    )
                done += got
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read at byte {offset + done}: {error.strerror}") from error

    def close(self) -> None:
        self.stream.close()


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, to write to."""
    return tensor.detach().view(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True)
class Contiguous:
    """Values one after another in the file, row by row. `row_bytes` is the whole tensor's size for a scalar."""

    file: WeightsFile
    offset: int
    nbytes: int
    row_bytes: int

    def fill(self, out: torch.Tensor, start: int) -> None:
        if out.numel():
            self.file.read_into(as_bytes(out), self.offset + start * self.row_bytes)

    def sample(self) -> bytes:
        return self.file.read(self.offset, min(self.nbytes, SAMPLE_BYTES))


@dataclass(frozen=True)
class Strided:
    """A view (transposed, sliced, expanded) in a torch file: the span that the rows cover is read, and the rows picked out of it.

    So rows of a transposed matrix cost a read of nearly the whole matrix, and its memory for that while.
    """

    file: WeightsFile
    offset: int
    """Of the first element, in bytes."""
    strides: tuple[int, ...]
    """In elements, one for each dimension; none is negative."""
    nbytes: int
    """From the first element to the end of the last one."""
    negated: bool = False

    def fill(self, out: torch.Tensor, start: int) -> None:
        if not out.numel():
            return
        span = torch.empty(1 + sum((n - 1) * step for n, step in zip(out.shape, self.strides, strict=True)), dtype=out.dtype)
        first = start * self.strides[0] if self.strides else 0
        self.file.read_into(as_bytes(span), self.offset + first * out.element_size())
        out.copy_(span.as_strided(out.shape, self.strides))
        if self.negated:
            out.neg_()

    def sample(self) -> bytes:
        return self.file.read(self.offset, min(self.nbytes, SAMPLE_BYTES))
