"""The weights' part of the file: where each lies, and how it gets there. No graph is needed for either.

Sizes follow from shapes and recipe before a byte is read, so this part can be written while the graph is still being compiled.
Weights are read, encoded and written in chunks of rows: none is ever whole in memory.
"""

import os
import threading
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from flatlm.errors import CheckpointError, RecipeError
from flatlm.progress import Progress
from flatlm.quantize.activations import LayerRanges
from flatlm.quantize.carried import CarrySummary, IntegerRows, StoredIntegers, fit
from flatlm.quantize.encode import Encoded, NonFiniteWeightError, encode_stream
from flatlm.quantize.schemes import Scheme

ALIGNMENT = 64
BIAS_LEVELS = 2**30
"""The largest integer of a bias; half of int32 is left for the products."""
LARGEST_PRODUCT = 256

Array = np.ndarray[Any, np.dtype[np.float32]]


class WeightSource(Protocol):
    """A weight of the re-authored model, wherever its values come from."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[rows, columns], or [n] for norms and biases."""
        ...

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) in any float dtype. Called from several threads."""
        ...

    def origin(self, row: int) -> str:
        """Where the row came from, for errors: the file and its tensor."""
        ...


@runtime_checkable
class IntegerSource(WeightSource, Protocol):
    """A weight source that may hold integers already, as a quantized checkpoint does. They are kept where the scheme can hold them."""

    def stored_integers(self) -> StoredIntegers | None:
        """What is stored; None for a weight of floats."""
        ...

    def integer_rows(self, start: int, stop: int) -> IntegerRows:
        """Rows [start, stop) as they are stored. Called from several threads, and only where `stored_integers` has no obstacle."""
        ...


class Schemes(Protocol):
    """Which weight is stored how: a recipe, or what was decided by one."""

    def scheme_for(self, name: str, shape: Sequence[int] | None = None, /) -> Scheme:
        """The weight's scheme."""
        ...

    def ranges_for(self, name: str, scheme: Scheme, /) -> LayerRanges | None:
        """The ranges that a scheme of static activations needs, else None; RecipeError where they are missing."""
        ...

    def require_matches(self, names: Iterable[str], /) -> None:
        """RecipeError where a pattern names weights that are not there."""
        ...


@dataclass(frozen=True)
class PlacedBias:
    """The bias of a linear of static activations, int32 [rows]: its scales are the input's scale times the weight's, row by row.

    `name`: its tensor's, and that of its scales; `source` holds the floats.
    """

    name: str
    source: WeightSource
    offset: int

    @property
    def size(self) -> int:
        return 4 * self.source.shape[0]


@dataclass(frozen=True)
class PlacedWeight:
    """A weight, its scheme, and its bytes' place: offsets from the beginning of the weights' part. Only block scales have a place there.

    `carried`: its source is an IntegerSource, whose integers the scheme holds. `ranges`, and `bias` if there is one, belong to schemes of
    static activations.
    """

    name: str
    scheme: Scheme
    source: WeightSource
    data_offset: int
    scales_offset: int | None
    carried: bool = False
    ranges: LayerRanges | None = None
    bias: PlacedBias | None = None

    @property
    def data_size(self) -> int:
        return self.scheme.nbytes(self.source.shape)

    @property
    def block_scales_size(self) -> int:
        return 0 if self.scheme.block_size is None else self.scheme.scales_nbytes(self.source.shape)

    @property
    def channel_scales(self) -> tuple[int, ...] | None:
        """The shape of its scales per channel, which are kept in the flatbuffer's root; None where it has none."""
        return None if self.scheme.block_size is not None else self.scheme.scales_shape(self.source.shape)

    @property
    def matrix(self) -> tuple[int, int]:
        shape = self.source.shape
        return (shape[0], shape[1]) if len(shape) == 2 else (1, shape[0])


class WeightLayout:
    """Where every weight lies, in the order of `sources`. `size` is the part's length in bytes, `carry` what becomes of stored integers.

    `biases` says which bias goes with which weight, for schemes of static activations: theirs become integers, and have no place of their
    own. None: the re-authored model's names say it. Raises RecipeError where a scheme does not fit a weight's shape or lacks its ranges, or
    where a pattern names weights that are not there.
    """

    def __init__(self, sources: Mapping[str, WeightSource], schemes: Schemes, *, biases: Mapping[str, str] | None = None) -> None:
        self.weights: dict[str, PlacedWeight] = {}
        self.size = 0
        self.carry = CarrySummary()
        schemes.require_matches(sources)
        chosen = {name: schemes.scheme_for(name, source.shape) for name, source in sources.items()}
        ranges = {name: schemes.ranges_for(name, scheme) for name, scheme in chosen.items()}
        static = {name: (bias_name(name, sources) if biases is None else biases.get(name)) for name in sources if ranges[name] is not None}
        for name, source in sources.items():
            if name in static.values():
                continue
            scheme = chosen[name]
            scheme.check(name, source.shape)
            data = self._take(scheme.nbytes(source.shape))
            scales = None if scheme.block_size is None else self._take(scheme.scales_nbytes(source.shape))
            stored = source.stored_integers() if isinstance(source, IntegerSource) else None
            carried = stored is not None and self.carry.add(stored, scheme)
            bias = static.get(name)
            placed = None if bias is None else PlacedBias(f"{name}/bias", sources[bias], self._take(4 * source.shape[0]))
            self.weights[name] = PlacedWeight(name, scheme, source, data, scales, carried, ranges[name], placed)

    def channel_scale_bytes(self) -> int:
        """What the scales per channel take in the root: a float32 scale and an int64 zero point each."""
        rows = sum(weight.channel_scales[0] for weight in self.weights.values() if weight.channel_scales)
        return 12 * (rows + sum(weight.bias.source.shape[0] for weight in self.weights.values() if weight.bias))

    def write(self, handle: int, at: int, *, threads: int | None = None, progress: Progress | None = None) -> dict[str, Array]:
        """Encode every weight to its place in the file, the part beginning at byte `at`; returns the scales per channel, by weight.

        `threads`: by default two for each processor, at most eight, so that some read and write while others encode.
        Raises CheckpointError for a weight that is not finite, OSError where the file cannot take it.
        """
        threads = threads or min(8, 2 * (os.cpu_count() or 1))
        os.truncate(handle, at + self.size)
        scales: dict[str, Array] = {}
        self.carry.moved = 0
        done, total = 0, sum(int(np.prod(weight.source.shape)) for weight in self.weights.values())
        for name, weight in self.weights.items():
            if weight.channel_scales:
                scales[name] = np.empty(weight.channel_scales, np.float32)
            self.carry.moved += _write_weight(handle, at, weight, scales.get(name), threads)
            if weight.ranges is not None:
                if weight.bias is not None:
                    scales[weight.bias.name] = _write_bias(handle, at, weight, weight.bias, scales[name])
                _require_room(weight, weight.ranges, scales[name])
            done += int(np.prod(weight.source.shape))
            if progress is not None:
                progress("weights", done, total)
        return scales

    def _take(self, size: int) -> int:
        offset = align(self.size)
        self.size = offset + size
        return offset


def bias_name(weight: str, names: Container[str]) -> str | None:
    """The bias that the re-authored model adds to what a weight gives; a tied head's weight is the embedding's."""
    own = "lm_head.bias" if weight == "embedding.weight" else f"{weight.removesuffix('.weight')}.bias"
    return own if own in names else None


def align(offset: int) -> int:
    """The next multiple of ALIGNMENT."""
    return offset + -offset % ALIGNMENT


def write_all(handle: int, data: Any, offset: int) -> None:
    """Write the whole of a buffer at a byte of the file."""
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def _write_weight(handle: int, at: int, weight: PlacedWeight, channel_scales: Array | None, threads: int | None) -> int:
    """Returns how many of a carried weight's integers had to move into the scheme's range."""
    row_bytes = weight.data_size // weight.matrix[0]
    moved, counting = 0, threading.Lock()

    def sink(start: int, stop: int, encoded: Encoded) -> None:
        write_all(handle, encoded.data, at + weight.data_offset + start * row_bytes)
        if encoded.scales is None:
            return
        if weight.scales_offset is None:
            assert channel_scales is not None
            channel_scales[start:stop] = encoded.scales
        else:
            write_all(handle, encoded.scales, at + weight.scales_offset + start * encoded.scales[0].nbytes)

    def read(start: int, stop: int) -> Tensor | IntegerRows:
        nonlocal moved
        if weight.carried and isinstance(weight.source, IntegerSource):
            rows, count = fit(weight.source.integer_rows(start, stop), weight.scheme)
            with counting:
                moved += count
            return rows
        if len(weight.source.shape) == 2:
            return weight.source.rows(start, stop)
        return weight.source.rows(0, weight.source.shape[0])[None, :]

    try:
        encode_stream(read, weight.matrix, weight.scheme, sink, threads=threads)
    except NonFiniteWeightError as error:
        where = weight.source.origin(error.row)
        raise CheckpointError(f"{where} holds NaN or infinity (weight {weight.name}, row {error.row}): repair the checkpoint") from error
    except RecipeError as error:
        raise RecipeError(f"{weight.source.origin(0)} (weight {weight.name}): {error}") from error
    return moved


def _write_bias(handle: int, at: int, weight: PlacedWeight, bias: PlacedBias, weight_scales: Array) -> Array:
    """Integers of a bias to their place: round_half_to_even(bias / scale) in float64. Returns the scales, the input's times the weight's.

    A row whose bias is beyond 2**30 of its scale, as that of a row of zeros is, gets the scale that holds it, in `weight_scales` too, and
    its integers are rounded once more: they are next to nothing beside the bias, and the runtime adds up in int32.
    """
    assert weight.ranges is not None
    values = bias.source.rows(0, bias.source.shape[0]).detach().to(torch.float64).numpy()
    if not np.isfinite(values).all():
        row = int(np.isfinite(values).argmin())
        raise CheckpointError(f"{bias.source.origin(row)} holds NaN or infinity (bias of {weight.name}, row {row}): repair the checkpoint")
    read_scale = np.float32(weight.ranges.input.affine().scale)
    least = np.abs(values) / (BIAS_LEVELS * float(read_scale))
    width = weight.matrix[1]
    for small in np.flatnonzero(weight_scales < least.astype(np.float32)).tolist():
        place = at + weight.data_offset + small * width
        integers = np.frombuffer(os.pread(handle, width, place), np.int8)
        write_all(handle, np.rint(integers * (float(weight_scales[small]) / least[small])).astype(np.int8), place)
        weight_scales[small] = least[small]
    scales = read_scale * weight_scales
    write_all(handle, np.rint(values / scales.astype(np.float64)).astype("<i4"), at + bias.offset)
    return scales


def _require_room(weight: PlacedWeight, ranges: LayerRanges, scales: Array) -> None:
    """The runtime's CPU delegate loads no file in which one product of integers is 256 steps of the output, or more (2.3.0, measured)."""
    if ranges.input.affine().scale * float(scales.max()) >= LARGEST_PRODUCT * ranges.output.affine().scale:
        raise RecipeError(
            f"the range of what {weight.name} gives, {ranges.output.low:g} to {ranges.output.high:g}, is too narrow for what it reads, "
            f"{ranges.input.low:g} to {ranges.input.high:g}: calibrate on more text, or give the weight the scheme dynamic_int8"
        )
