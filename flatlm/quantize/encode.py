"""Weights to stored integers and scales, and back: the one formula that every path uses.

Whatever the checkpoint's dtype, the numbers are made float32 first. A weight [R, C] is cut into groups: a whole row for a
scale per channel, `block_size` neighbouring columns of a row for a scale per block. With levels = 127 (int8) or 7 (int4),
all in float32, for each group:

    scale   = max(max|w| / levels, smallest)          float32: kept as it is; float16: rounded, see below
    integer = round_half_to_even(w / scale)           no clamp is needed, see below
    decoded = integer * scale

These are the integers of ai-edge-quantizer too, which quantizes what goes the generic way through litert-torch.

- The scale that is stored is the scale that is divided by. A block's scale is rounded to bfloat16 and then to float16:
  the runtime's CPU delegate (ai-edge-litert 2.3.0) narrows float16 scales to bfloat16 for FULLY_CONNECTED, so a scale of
  more than 8 significant bits would be off by up to 0.4 % there, and exact in EMBEDDING_LOOKUP: two meanings for one file.
- `smallest` keeps a scale of a group of zeros, or of tiny numbers, above zero: the runtime refuses a file that has a scale
  of 0. It is 2**-100 for float32 and 2**-20 for float16 (a subnormal there, which the runtime reads), so that zero stays
  exactly zero and the error is still at most half a scale.
- No clamp: rounding a float16 scale of at least 2**-20 takes off at most 1/32 + 1/256 of it, so |w / scale| < 7.3, and
  float32 adds some 2**-22: |integer| <= levels always.
- A checkpoint's own integers are not encoded but stored, with their scales (carried.py).
- A row's result depends on nothing but the row, so it does not matter in how many chunks a weight is read.

Two int4 share a byte, the even column in the low nibble (the host must be little-endian, as the file is).

Speed: each step is one vectorised torch operation into a buffer that is reused, over a chunk that stays in the cache, on
some threads (torch lets go of the interpreter's lock). benchmarks/quantize_throughput.py has the figures.
"""

import collections
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flatlm.errors import CheckpointError, RecipeError
from flatlm.quantize.carried import IntegerRows, block_scales
from flatlm.quantize.schemes import Scheme

# At most: larger falls out of the cache, smaller pays more for Python's calls (about 12 MiB of memory for each thread).
CHUNK_ELEMENTS = 1 << 20
SMALLEST_SCALE = {torch.float32: 2.0**-100, torch.float16: 2.0**-20}

_READABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_STORED = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8, "int4": torch.uint8}
_MOST_THREADS = 8  # each holds the interpreter's lock for about a tenth of its time

Array = np.ndarray[Any, np.dtype[Any]]
Read = Callable[[int, int], torch.Tensor | IntegerRows]


class NonFiniteWeightError(CheckpointError):
    """A weight holds NaN or infinity (or a float64 beyond float32). `row` is the first such row; whoever knows the name adds it."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} holds NaN or infinity, which cannot be exported")
        self.row = row


@dataclass(frozen=True, slots=True)
class Encoded:
    """Stored rows: `data` C-contiguous, float32, float16 or int8 [R, C], or two int4 a byte, uint8 [R, C / 2].

    `scales` has the shape that Scheme.scales_shape says, float32 for a scale per channel, float16 for one per block.
    """

    data: Array
    scales: Array | None


Sink = Callable[[int, int, Encoded], None]


def encode(rows: torch.Tensor, scheme: Scheme) -> Encoded:
    """Encode rows [R, C] (for a float scheme: [R, ...]) of float32, bfloat16, float16 or float64.

    Raises NonFiniteWeightError, RecipeError where the scheme does not fit the shape or float16 not the values, and
    CheckpointError for any other dtype.
    """
    parts: list[Encoded] = []

    def keep(start: int, stop: int, part: Encoded) -> None:
        parts.append(Encoded(part.data.copy(), None if part.scales is None else part.scales.copy()))

    encode_stream(lambda start, stop: rows[start:stop], rows.shape, scheme, keep, threads=1)
    if len(parts) == 1:
        return parts[0]
    scales = [part.scales for part in parts if part.scales is not None]
    return Encoded(np.concatenate([part.data for part in parts]), np.concatenate(scales) if scales else None)


def decode(encoded: Encoded, scheme: Scheme, shape: Sequence[int]) -> torch.Tensor:
    """The float32 weight of that shape that the runtime computes with: integer * scale, rounded once."""
    data = unpack(encoded, scheme)
    if encoded.scales is None:
        return data.to(torch.float32).reshape(tuple(shape))
    scales = torch.from_numpy(np.require(encoded.scales, requirements="W")).to(torch.float32).reshape(-1, 1)
    return (data.reshape(scales.shape[0], -1) * scales).reshape(tuple(shape))


def as_stored(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """The float32 weight that the runtime computes with where this one, or these rows of it, were encoded."""
    return decode(encode(weight, scheme), scheme, weight.shape)


def unpack(encoded: Encoded, scheme: Scheme) -> torch.Tensor:
    """The stored numbers in the weight's shape: int8 also where two share a byte, float32 or float16 for a float scheme."""
    data = torch.from_numpy(np.require(encoded.data, requirements="W"))  # a file's own pages are read-only: those are copied
    if scheme.storage != "int4":
        return data
    # Shifting left and back as int8 brings a nibble's sign along.
    return torch.stack((data.view(torch.int8) << 4 >> 4, data.view(torch.int8) >> 4), dim=-1).reshape(data.shape[0], -1)


def encode_stream(read: Read, shape: Sequence[int], scheme: Scheme, sink: Sink, threads: int | None = None) -> None:
    """Encode a weight of that shape piece by piece, on some threads, without holding more of it than a chunk for each.

    `read(start, stop)` gives those rows, or the integers that a checkpoint holds for them, in the scheme's groups (carried.fit);
    `sink(start, stop, encoded)` takes them, in whatever order they get done. Both are called on several threads at once, and
    the arrays in `encoded` are written over after `sink` returns. `threads` None is as many as torch.get_num_threads() says,
    at most 8. The first error of `read`, `sink` or the encoding stops the rest and is raised.
    """
    scheme.check("rows", shape)
    rows, tail = shape[0], tuple(shape[1:])
    count = threads or min(torch.get_num_threads(), _MOST_THREADS)
    pieces = math.ceil(math.prod(shape) / CHUNK_ELEMENTS)
    step = math.ceil(rows / (math.ceil(pieces / count) * count)) if pieces > 1 else rows  # as many pieces for each thread
    starts = range(0, rows, step)
    count = min(count, len(starts))
    pending = iter(starts)  # next() holds the interpreter's lock, so that each start is taken once

    def work() -> None:
        whole = _Chunk(scheme, step, tail)
        for start in pending:
            stop = min(start + step, rows)
            chunk = whole if stop - start == step else _Chunk(scheme, stop - start, tail)
            sink(start, stop, chunk.encode(read(start, stop), start))

    with _one_thread_an_operation:
        if count == 1:
            work()
        else:
            with ThreadPoolExecutor(count, thread_name_prefix="flatlm-encode") as pool:
                futures = [pool.submit(work) for _ in range(count)]
                try:
                    wait(futures, return_when=FIRST_EXCEPTION)
                finally:
                    collections.deque(pending, maxlen=0)  # after an error or an interrupt: nothing is left to take
            for future in futures:
                future.result()


class _Chunk:
    """Memory for just so many rows, and the formula's steps on it.

    Everything is allocated, and every view taken, beforehand: a chunk takes some tens of microseconds, so that each
    Python call that is saved in `encode` shows, the more so as the threads take turns for Python.
    """

    def __init__(self, scheme: Scheme, rows: int, tail: tuple[int, ...]) -> None:
        self.scheme = scheme
        self.shape = (rows, *tail)
        packed = (tail[0] // 2,) if scheme.storage == "int4" else tail
        self.data = torch.empty((rows, *packed), dtype=_STORED[scheme.storage])
        self.encoded = Encoded(self.data.numpy(), None)
        scales_shape = scheme.scales_shape(self.shape)
        if scales_shape is None:
            self.source = self.data if scheme.storage == "float32" else torch.empty(self.shape)
            return
        self.scales = torch.empty(scales_shape, dtype=torch.float32 if scheme.block_size is None else torch.float16)
        self.encoded = Encoded(self.data.numpy(), self.scales.numpy())
        self.levels = torch.tensor(float(scheme.levels))
        self.smallest = SMALLEST_SCALE[self.scales.dtype]
        self.per_group = self.scales.view(-1)
        self.grouped = (self.per_group.numel(), scheme.block_size or tail[0])
        self.source, self.quotient = torch.empty(2, *self.grouped)
        self.source_rows = self.source.view(self.shape)
        self.quotient_bits = self.quotient.view(torch.int32)
        self.scale, self.lowest = torch.empty(2, self.grouped[0])
        self.scale_bits = self.scale.view(torch.int32)
        self.scale_array = self.scale.numpy()
        self.scale_column = self.scale[:, None]
        if scheme.block_size is not None:
            self.narrow = torch.empty(self.grouped[0], dtype=torch.bfloat16)
        if scheme.storage == "int4":
            self.integers = torch.empty(self.grouped, dtype=torch.int8)
            self.pairs = self.integers.view(-1).view(torch.int16)
            self.high = torch.empty_like(self.pairs)
            self.bytes = self.data.view(-1)
        else:
            self.integers = self.data.view(self.grouped)

    def encode(self, rows: torch.Tensor | IntegerRows, first_row: int) -> Encoded:
        """Encode rows of this chunk's shape, into arrays that the next call writes over; `first_row` is their place in the weight."""
        if isinstance(rows, IntegerRows):
            self._carry(rows)
            return self.encoded
        if rows.dtype not in _READABLE:
            raise CheckpointError(f"weights of {rows.dtype} cannot be encoded; they must be float32, bfloat16, float16 or float64")
        if rows.shape != self.shape:
            raise ValueError(f"read gave rows of shape {tuple(rows.shape)} where {self.shape} was asked for")
        if rows.requires_grad:
            rows = rows.detach()
        if self.scheme.quantized:
            self._quantize(rows, first_row)
        else:
            self._convert(rows, first_row)
        return self.encoded

    def _convert(self, rows: torch.Tensor, first_row: int) -> None:
        self.source.copy_(rows)
        peak = max(self.source.amax().item(), -self.source.amin().item())  # NaN in both, so it wins
        if not math.isfinite(peak):
            _refuse_non_finite(rows, first_row)
        if self.source is not self.data:
            if peak >= 65520:  # halfway to the power of two that float16 lacks
                raise RecipeError(f"{_row_of_peak(rows, first_row)} holds numbers beyond float16 (65504); use a float32 or integer scheme")
            self.data.copy_(self.source)

    def _quantize(self, rows: torch.Tensor, first_row: int) -> None:
        source, quotient, scale = self.source, self.quotient, self.scale
        if rows.dtype == torch.float32 and rows.is_contiguous():
            source = rows.view(self.grouped)
        else:
            self.source_rows.copy_(rows)
        self._absolute_maximum(source)
        scale.div_(self.levels).clamp_min_(self.smallest)
        if self.scheme.block_size is not None:
            scale.copy_(self.per_group.copy_(self.narrow.copy_(scale)))
        else:
            self.per_group.copy_(scale)
        if not math.isfinite(np.maximum.reduce(self.scale_array)):
            _refuse_non_finite(rows, first_row)
            raise RecipeError(f"{_row_of_peak(rows, first_row)} needs a scale beyond float16 (65504); use a per-channel scheme")

        torch.div(source, self.scale_column, out=quotient)
        self.integers.copy_(quotient.round_())
        self._pack()

    def _carry(self, rows: IntegerRows) -> None:
        self.integers.copy_(rows.integers.reshape(self.grouped))
        scales = rows.scales.reshape(-1)
        self.per_group.copy_(block_scales(scales) if self.scheme.block_size is not None else scales)
        self._pack()

    def _pack(self) -> None:
        if self.scheme.storage == "int4":
            # As int16, a pair of columns is 0x0H0L after the mask, and 0xHL is the low byte of (pair >> 4) | pair.
            self.pairs.bitwise_and_(0x0F0F)
            torch.bitwise_right_shift(self.pairs, 4, out=self.high)
            self.bytes.copy_(self.pairs.bitwise_or_(self.high))

    def _absolute_maximum(self, source: torch.Tensor) -> None:
        """max|w| of each group into `scale`; NaN wins. Two ways to the same number: which one is faster depends on the width."""
        if self.grouped[1] >= 256:
            torch.amax(source, 1, out=self.scale)
            torch.amin(source, 1, out=self.lowest)
            torch.maximum(self.scale, self.lowest.neg_(), out=self.scale)
        else:
            # Floats that are not negative are in the order of their bits, and the integers' maximum is the faster one.
            torch.abs(source, out=self.quotient)  # for want of another place of that size
            torch.amax(self.quotient_bits, 1, out=self.scale_bits)


def _row_of_peak(rows: torch.Tensor, first_row: int) -> str:
    return f"row {first_row + int(rows.reshape(rows.shape[0], -1).abs().amax(dim=1).argmax())}"


def _refuse_non_finite(rows: torch.Tensor, first_row: int) -> None:
    bad = ~torch.isfinite(rows.to(torch.float32)).reshape(rows.shape[0], -1).all(dim=1)
    if bad.any():
        raise NonFiniteWeightError(first_row + int(bad.to(torch.int8).argmax()))


class _OneThreadAnOperation:
    """While any encode_stream runs, torch's own threads are off: a chunk is too small to share out. Then as before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._before = 1

    def __enter__(self) -> None:
        with self._lock:
            if self._running == 0:
                self._before = torch.get_num_threads()
            self._running += 1
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._running -= 1
            torch.set_num_threads(self._before)


_one_thread_an_operation = _OneThreadAnOperation()
