"""Headers of safetensors files.

The format (https://huggingface.co/docs/safetensors): a little-endian u64 N, then N bytes of JSON that map each name to
{"dtype", "shape", "data_offsets": [begin, end]} (and "__metadata__" to strings), then the values, in which the offsets count,
with neither a gap nor an overlap, to the end of the file.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import torch

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.files import Contiguous, Entry, TensorRecord, WeightsFile

MAX_HEADER = 100_000_000
"""Bytes; the format's own limit."""


class Format(NamedTuple):
    """How a stored dtype reads; `bits` is None where it is unknown, `supported` False where the values cannot be read."""

    dtype: torch.dtype
    bits: int | None
    supported: bool = True


FORMATS = {
    "F64": Format(torch.float64, 64),
    "F32": Format(torch.float32, 32),
    "F16": Format(torch.float16, 16),
    "BF16": Format(torch.bfloat16, 16),
    "I64": Format(torch.int64, 64),
    "I32": Format(torch.int32, 32),
    "I16": Format(torch.int16, 16),
    "I8": Format(torch.int8, 8),
    "U64": Format(torch.uint64, 64),
    "U32": Format(torch.uint32, 32),
    "U16": Format(torch.uint16, 16),
    "U8": Format(torch.uint8, 8),
    "BOOL": Format(torch.bool, 8),
    "C64": Format(torch.complex64, 64, supported=False),
    "F8_E4M3": Format(torch.float8_e4m3fn, 8, supported=False),
    "F8_E5M2": Format(torch.float8_e5m2, 8, supported=False),
    "F8_E4M3FNUZ": Format(torch.float8_e4m3fnuz, 8, supported=False),
    "F8_E5M2FNUZ": Format(torch.float8_e5m2fnuz, 8, supported=False),
    "F8_E8M0": Format(torch.float8_e8m0fnu, 8, supported=False),
    "F6_E2M3": Format(torch.bits8, 6, supported=False),
    "F6_E3M2": Format(torch.bits8, 6, supported=False),
    "F4": Format(torch.bits8, 4, supported=False),
}
_UNKNOWN = Format(torch.bits8, None, supported=False)


def read_header(file: WeightsFile) -> tuple[range, list[Entry]]:
    """The bytes of the header (its length too), and the tensors in the order of their values. CheckpointError where anything is amiss."""
    header = _header_bytes(file)
    table = _parse(header[8:], file.path)
    found = [(*_offsets(fields, name, file.path), name, fields) for name, fields in table.items()]
    found.sort(key=lambda item: item[:2])
    entries, end = [], 0
    for begin, stop, name, fields in found:
        if begin != end:
            what = "overlaps the tensor before it" if begin < end else "leaves a gap after the tensor before it"
            raise _corrupt(file.path, f"tensor {name!r} begins at byte {begin} of the values, not at {end}: it {what}")
        end = stop
        entries.append(_entry(file, len(header), (begin, stop), name, fields))
    _check_end(file, len(header) + end)
    return range(len(header)), entries


def _header_bytes(file: WeightsFile) -> bytes:
    if file.size < 8:
        raise CheckpointError(f"{file.path}: is truncated: {file.size} bytes, too few for a safetensors header; download it again")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MAX_HEADER:
        raise _corrupt(file.path, f"its header claims {length} bytes, more than the {MAX_HEADER} that the format allows")
    if 8 + length > file.size:
        raise CheckpointError(f"{file.path}: is truncated: {file.size} bytes, but its header alone takes {8 + length}; download it again")
    return file.read(0, 8 + length)


def _parse(header: bytes, path: Path) -> dict[str, dict[str, object]]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        members: dict[str, object] = {}
        for key, value in pairs:
            if key in members:
                raise _corrupt(path, f"its header names {key!r} twice")
            members[key] = value
        return members

    try:
        table = json.loads(header.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"its header is not JSON ({error})") from error
    if not isinstance(table, dict):
        raise _corrupt(path, "its header is not a JSON object")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise _corrupt(path, "its __metadata__ is not a JSON object")
    for name, fields in table.items():
        if not isinstance(fields, dict) or not {"dtype", "shape", "data_offsets"} <= fields.keys():
            raise _corrupt(path, f"tensor {name!r} lacks dtype, shape or data_offsets in its header")
    return table


def _offsets(fields: dict[str, object], name: str, path: Path) -> tuple[int, int]:
    offsets = _naturals(fields["data_offsets"])
    if offsets is None or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _corrupt(path, f"tensor {name!r} has data_offsets {_short(fields['data_offsets'])}, not [begin, end]")
    return offsets[0], offsets[1]


def _entry(file: WeightsFile, base: int, span: tuple[int, int], name: str, fields: dict[str, object]) -> Entry:
    shape, stored, nbytes = _naturals(fields["shape"]), fields["dtype"], span[1] - span[0]
    # Zero-sized tensors too must have dimensions that torch can hold.
    if shape is None or math.prod(max(size, 1) for size in shape) >= 2**63:
        raise _corrupt(file.path, f"tensor {name!r} has shape {_short(fields['shape'])}")
    if not isinstance(stored, str):
        raise _corrupt(file.path, f"tensor {name!r} has dtype {_short(stored)}, which is not a string")
    form = FORMATS.get(stored, _UNKNOWN)
    if form.bits is not None and math.prod(shape) * form.bits != nbytes * 8:
        raise _corrupt(file.path, f"tensor {name!r} takes {nbytes} bytes, which does not fit shape {shape} of {stored}")
    record = TensorRecord(name, shape, form.dtype, file.path, None if form.supported else stored)
    row_bytes = nbytes // shape[0] if shape and shape[0] else nbytes
    return Entry(record, Contiguous(file, base + span[0], nbytes, row_bytes))


def _check_end(file: WeightsFile, end: int) -> None:
    if file.size < end:
        raise CheckpointError(f"{file.path}: is truncated: {file.size} of {end} bytes; download it again")
    if file.size > end:
        raise _corrupt(file.path, f"it has {file.size - end} bytes after the end of its last tensor")


def _naturals(value: object) -> tuple[int, ...] | None:
    """A list of non-negative integers as a tuple, or None for anything else (JSON's true is not 1)."""
    if isinstance(value, list) and all(type(item) is int and item >= 0 for item in value):
        return tuple(value)
    return None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _corrupt(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: is corrupt: {what}; download it again")
