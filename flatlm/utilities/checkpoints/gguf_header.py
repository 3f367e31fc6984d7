"""Headers of GGUF files: their metadata, and where each tensor lies. No values are read.

The format (ggml's docs/gguf.md), little-endian: "GGUF", u32 version, u64 tensors, u64 pairs; the pairs (text key, u32 type, value);
the tensors (text name, u32 dimensions, u64 sizes with the fastest first, u32 type, u64 offset); then, aligned, the values. A text is
a u64 length and UTF-8; an array is u32 type, u64 length, its items.

The gguf library's reader is not used: it trusts lengths that a damaged file may claim, and makes an array object of every token.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import gguf
import numpy as np

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.files import WeightsFile

MAX_HEADER = 256 * 2**20
"""Bytes; a vocabulary of 262144 tokens takes about 10 MiB."""

MAX_DIMENSIONS = 4
_MAGIC = b"GGUF"
_CHUNK = 2**20
_TEXT, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class GgufTensor:
    """A tensor as the header describes it. shape: slowest dimension first, as torch has it; kind: "Q4_K"; offset: in the file."""

    name: str
    shape: tuple[int, ...]
    kind: str
    file: WeightsFile
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """A file's metadata (arrays of numbers as numpy arrays, of texts as lists) and tensors. `size`: the header's own bytes."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]
    size: int


def read_header(file: WeightsFile) -> GgufHeader:
    """Raises CheckpointError, with the key or tensor at fault, where anything is amiss."""
    cursor = _Cursor(file)
    _check_version(cursor)
    tensor_count, pair_count = cursor.number("Q"), cursor.number("Q")
    cursor.require(tensor_count * 24 + pair_count * 12, "its counts of keys and tensors")  # the least that they can take
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = cursor.text("a key")
        if key in metadata:
            cursor.corrupt(f"its metadata has {key!r} twice")
        metadata[key] = _value(cursor, key)
    rows = [_tensor_row(cursor) for _ in range(tensor_count)]
    size, alignment = cursor.at, metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        cursor.corrupt(f"general.alignment = {alignment!r} is not a power of two")
    base = -(-size // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, number, offset in rows:
        if name in tensors:
            cursor.corrupt(f"tensor {name!r} is there twice")
        kind, nbytes = _kind(cursor, name, shape, number)
        if offset % alignment:
            cursor.corrupt(f"tensor {name!r} begins at byte {offset} of the values, which is not a multiple of {alignment}")
        if base + offset + nbytes > file.size:
            raise CheckpointError(
                f"{file.path}: is truncated or corrupt: tensor {name!r} ends at byte {base + offset + nbytes} of {file.size}; "
                "download it again"
            )
        tensors[name] = GgufTensor(name, shape, kind, file, base + offset, nbytes)
    _check_overlaps(cursor, tensors)
    return GgufHeader(file.path, metadata, tuple(tensors.values()), size)


def read_metadata(path: Path) -> Mapping[str, Any]:
    """A file's metadata alone. Raises CheckpointError."""
    file = WeightsFile(path)
    try:
        return read_header(file).metadata
    finally:
        file.close()


class _Cursor:
    """Reads a header from its beginning on, never beyond the file or MAX_HEADER."""

    def __init__(self, file: WeightsFile) -> None:
        self.file, self.at = file, 0
        self._data = bytearray()

    def require(self, size: int, what: str) -> None:
        """The file goes on for `size` bytes."""
        end = self.at + size
        if end > self.file.size:
            raise CheckpointError(
                f"{self.file.path}: is truncated or corrupt: {what} would end at byte {end} of {self.file.size}; download it again"
            )
        if end > MAX_HEADER:
            self.corrupt(f"{what} would make its header larger than {MAX_HEADER} bytes")

    def take(self, size: int, what: str = "its header") -> bytearray:
        end = self.at + size
        if end > len(self._data):
            self.require(size, what)
            have = len(self._data)
            self._data += self.file.read(have, min(max(end - have, _CHUNK), self.file.size - have))
        found = self._data[self.at : end]
        self.at = end
        return found

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self, what: str) -> str:
        data = self.take(int.from_bytes(self.take(8, what), "little"), what)
        try:
            return data.decode()
        except UnicodeDecodeError:
            self.corrupt(f"{what} is not UTF-8 text")

    def corrupt(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self.file.path}: is corrupt: {what}; download it again")


def _check_version(cursor: _Cursor) -> None:
    path = cursor.file.path
    if (magic := bytes(cursor.take(4))) != _MAGIC:
        raise CheckpointError(f"{path}: is not a GGUF file: it begins with {magic!r}; download it again")
    version = cursor.number("I")
    if version in (2, 3):
        return
    if version & 0xFFFF == 0:
        raise CheckpointError(f"{path}: is a GGUF file of big-endian machines; FlatLM reads little-endian ones")
    raise CheckpointError(f"{path}: is GGUF version {version}; FlatLM reads versions 2 and 3: get a newer file of the model")


def _value(cursor: _Cursor, key: str) -> Any:
    kind = cursor.number("I")
    if kind == _TEXT:
        return cursor.text(f"the value of {key!r}")
    if kind != _ARRAY:
        return cursor.number(_scalar(cursor, key, kind))
    kind, count = cursor.number("I"), cursor.number("Q")
    what = f"the array {key!r}"
    if kind == _TEXT:
        cursor.require(8 * count, what)
        return [cursor.text(what) for _ in range(count)]
    dtype = np.dtype("?" if kind == _BOOL else "<" + _scalar(cursor, key, kind))
    return np.frombuffer(cursor.take(count * dtype.itemsize, what), dtype)


def _scalar(cursor: _Cursor, key: str, kind: int) -> str:
    if kind not in _SCALARS:
        cursor.corrupt(f"{key!r} has a value of the unknown type {kind}")
    return _SCALARS[kind]


def _tensor_row(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text("a tensor's name")
    dimensions = cursor.number("I")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        cursor.corrupt(f"tensor {name!r} has {dimensions} dimensions, not 1 to {MAX_DIMENSIONS}")
    sizes = tuple(cursor.number("Q") for _ in range(dimensions))
    if math.prod(max(size, 1) for size in sizes) >= 2**60:
        cursor.corrupt(f"tensor {name!r} has shape {sizes[::-1]}")
    return name, sizes[::-1], cursor.number("I"), cursor.number("Q")


def _kind(cursor: _Cursor, name: str, shape: tuple[int, ...], number: int) -> tuple[str, int]:
    """The type's name and the tensor's bytes: none where the library has never heard of the type."""
    try:
        kind = gguf.GGMLQuantizationType(number)
    except ValueError:
        return f"type {number}", 0
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        cursor.corrupt(f"tensor {name!r} of shape {shape} cannot be {kind.name}, which has blocks of {block}")
    return kind.name, math.prod(shape) // block * block_bytes


def _check_overlaps(cursor: _Cursor, tensors: Mapping[str, GgufTensor]) -> None:
    end, before = 0, ""
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset < end:
            cursor.corrupt(f"tensor {tensor.name!r} overlaps {before!r}")
        end, before = tensor.offset + tensor.nbytes, tensor.name
