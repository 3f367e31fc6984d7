"""Headers of files that `torch.save` wrote, without their values and without running any code of theirs.

A file of torch 1.6 or later is a zip of stored (not compressed) records: `data.pkl`, the pickled structure, and `data/KEY`, the raw
values of each storage. `torch.load(weights_only=True)` reads the structure onto the meta device from a stand-in zip with the same
`data.pkl` but empty storages; it notes where in the zip each storage lies, so a tensor leads to its KEY, and so to its bytes in the
real file, whatever order or alignment those have. Rows are then read by position, as from safetensors.

An older (legacy) file is one run of pickles and values: its structure is read alone too, but the first read of a value loads the
whole file, which stays in memory until the checkpoint is closed.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.files import Contiguous, Entry, Source, Strided, TensorRecord, WeightsFile

MAX_STRUCTURE = 256 * 2**20
"""Bytes of `data.pkl`; that of a large model takes under 1 MiB."""

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training frameworks keep the weights, tried in this order, one inside another too."""

_ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LOCAL_HEADER = 30
_FORBIDDEN = re.compile(r"GLOBAL (\S+)")
_RESAVE = "re-save its weights as safetensors (safetensors.torch.save_file), or as a plain state dict with torch.save"


def read_header(file: WeightsFile) -> tuple[range, list[Entry]]:
    """The bytes of the header (`data.pkl`; of a legacy file: all), and the tensors in the order of the state dict."""
    start = file.read(0, min(file.size, len(_LEGACY_MAGIC)))
    if start.startswith(_ZIP_MAGIC):
        return _read_zip(file)
    if start == _LEGACY_MAGIC:
        return _read_legacy(file)
    raise CheckpointError(f"{file.path}: is not a file of torch.save (neither a zip nor a legacy pickle of tensors); download it again")


class _Storage(NamedTuple):
    """A record `data/KEY`: its bytes in the file."""

    offset: int
    nbytes: int


def _read_zip(file: WeightsFile) -> tuple[range, list[Entry]]:
    try:
        with zipfile.ZipFile(file.stream) as archive:
            records = _records(archive, file)
            structure = _record_bytes(archive, records["data.pkl"], file)
            version = _record_bytes(archive, records["version"], file) if "version" in records else b"3\n"
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, OSError) as error:
        raise CheckpointError(f"{file.path}: is truncated or corrupt: not a readable zip ({error}); download it again") from error
    stored = {name: _locate(file, info) for name, info in records.items() if name.startswith("data/")}
    pickled = _locate(file, records["data.pkl"])
    stand_in, keys = _stand_in(structure, version, stored)
    state = state_dict(_load(stand_in, file, "meta"), file)
    return range(pickled.offset, pickled.offset + pickled.nbytes), [_zip_entry(file, name, tensor, keys) for name, tensor in state.items()]


def _records(archive: zipfile.ZipFile, file: WeightsFile) -> dict[str, zipfile.ZipInfo]:
    """The archive's records by their names below its one folder; checked to be plain, little-endian torch.save output."""
    infos = archive.infolist()
    folder = infos[0].filename.split("/")[0] + "/" if infos else ""
    records: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename.removeprefix(folder)
        if name in records:
            raise CheckpointError(f"{file.path}: is corrupt: its record {info.filename!r} is there twice; download it again")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise CheckpointError(
                f"{file.path}: its record {info.filename!r} is compressed or encrypted, as torch.save never does; {_RESAVE}"
            )
        records[name] = info
    if "constants.pkl" in records:
        raise CheckpointError(f"{file.path}: is a TorchScript program, not weights; {_RESAVE}")
    if "data.pkl" not in records:
        raise CheckpointError(f"{file.path}: is a zip, but not one of torch.save (no data.pkl in it); {_RESAVE}")
    if "byteorder" in records and (order := _record_bytes(archive, records["byteorder"], file)) != b"little":
        raise CheckpointError(
            f"{file.path}: its byte order is {order[:20].decode(errors='replace')!r}, not 'little'; on a little-endian machine {_RESAVE}"
        )
    return records


def _record_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: WeightsFile) -> bytes:
    if info.file_size > MAX_STRUCTURE:
        raise CheckpointError(f"{file.path}: its record {info.filename!r} has {info.file_size} bytes, more than {MAX_STRUCTURE}; {_RESAVE}")
    return archive.read(info)  # checks the record's CRC


def _locate(file: WeightsFile, info: zipfile.ZipInfo) -> _Storage:
    """Where the record's bytes are: behind its local header, whose length only that header itself tells."""
    header = file.read(info.header_offset, _LOCAL_HEADER) if info.header_offset + _LOCAL_HEADER <= file.size else b""
    offset = info.header_offset + _LOCAL_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if not header.startswith(_ZIP_MAGIC) or offset + info.file_size > file.size:
        raise CheckpointError(
            f"{file.path}: is truncated or corrupt: its record {info.filename!r} is not where it should be; download it again"
        )
    return _Storage(offset, info.file_size)


def _stand_in(structure: bytes, version: bytes, stored: Mapping[str, _Storage]) -> tuple[io.BytesIO, dict[int, _Storage]]:
    """A zip that torch.load reads like the original but with empty storages; and each one's offset in it, to the original's bytes."""
    buffer, keys = io.BytesIO(), {}
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", structure)
        archive.writestr("archive/version", version)
        for name, storage in stored.items():
            record = f"archive/{name}"
            keys[buffer.tell() + _LOCAL_HEADER + len(record.encode())] = storage
            archive.writestr(record, b"")
    buffer.seek(0)
    return buffer, keys


def _load(source: Any, file: WeightsFile, device: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about deprecated storage classes, which the file chose
            return torch.load(source, map_location=device, weights_only=True)
    except Exception as error:
        if forbidden := _FORBIDDEN.search(str(error)):
            raise CheckpointError(
                f"{file.path}: holds Python objects other than tensors ({forbidden[1]}), whose code FlatLM does not run; {_RESAVE}"
            ) from error
        cause = error.__context__ if isinstance(error, pickle.UnpicklingError) and error.__context__ else error
        reason = str(cause).split("\n", 1)[0] or type(cause).__name__
        raise CheckpointError(f"{file.path}: is truncated or corrupt, or holds tensors of an unusual kind ({reason}); {_RESAVE}") from error


def state_dict(loaded: object, file: WeightsFile) -> dict[str, torch.Tensor]:
    """The mapping of names to tensors in what torch.load gave: under one of WRAPPERS, else itself. What is not a tensor is left out."""
    for candidate in _candidates(loaded, 3):
        tensors = {name: value for name, value in candidate.items() if isinstance(value, torch.Tensor)}
        if tensors:
            if not all(isinstance(name, str) for name in tensors):
                raise CheckpointError(f"{file.path}: its tensors' names are not all strings; {_RESAVE}")
            return tensors
    keys = ", ".join(map(repr, list(loaded)[:8])) if isinstance(loaded, Mapping) else type(loaded).__name__
    raise CheckpointError(f"{file.path}: has no tensors at its top or under {', '.join(WRAPPERS)} (it holds: {keys}); {_RESAVE}")


def _candidates(loaded: object, depth: int) -> Iterator[Mapping[Any, Any]]:
    if not isinstance(loaded, Mapping):
        return
    if depth:
        for key in WRAPPERS:
            yield from _candidates(loaded.get(key), depth - 1)
    yield loaded


def _zip_entry(file: WeightsFile, name: str, tensor: torch.Tensor, keys: Mapping[int, _Storage]) -> Entry:
    shape, kind = tuple(tensor.shape), unsupported_kind(tensor)
    place = None if kind else keys.get(getattr(tensor.untyped_storage(), "_checkpoint_offset", None) or 0)
    if place is None:
        record = TensorRecord(name, shape, tensor.dtype, file.path, kind or "a tensor without values")
        return Entry(record, Contiguous(file, 0, 0, 0))
    item = tensor.element_size()
    strides = tuple(tensor.stride())
    first, span = 0, 0  # in bytes; a view without elements may begin anywhere
    if math.prod(shape):
        first = int(tensor.storage_offset()) * item
        span = (1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))) * item
    if min((first, *strides)) < 0 or first + span > place.nbytes:
        raise CheckpointError(
            f"{file.path}: is corrupt: tensor {name!r} reaches beyond its {place.nbytes} bytes of values; download it again"
        )
    offset = place.offset + first
    source: Source = Strided(file, offset, strides, span, tensor.is_neg())
    if tensor.is_contiguous() and not tensor.is_neg():
        source = Contiguous(file, offset, span, span // shape[0] if shape and shape[0] else span)
    return Entry(TensorRecord(name, shape, tensor.dtype, file.path), source)


def unsupported_kind(tensor: torch.Tensor) -> str | None:
    """What makes a tensor's values unreadable here, or None."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return type(tensor).__name__
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    if tensor.is_quantized or tensor.is_complex() or (tensor.is_floating_point() and tensor.element_size() < 2):
        return str(tensor.dtype).removeprefix("torch.")
    return None


@dataclass
class _Legacy:
    """A legacy file, whose values are all loaded when the first one is asked for."""

    file: WeightsFile

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._tensors: dict[str, torch.Tensor] | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        with self._lock:
            if self._tensors is None:
                self._tensors = state_dict(_load(self.file.path, self.file, "cpu"), self.file)
            return self._tensors


@dataclass(frozen=True)
class _LegacyTensor:
    whole: _Legacy
    name: str

    def fill(self, out: torch.Tensor, start: int) -> None:
        tensor = self.whole.tensors()[self.name].detach()
        out.copy_(tensor[start : start + len(out)] if out.ndim else tensor)

    def sample(self) -> bytes:
        return b""  # the whole file is already in the fingerprint


def _read_legacy(file: WeightsFile) -> tuple[range, list[Entry]]:
    with file.path.open("rb") as stream, torch.serialization.skip_data():
        state = state_dict(_load(stream, file, "cpu"), file)
        end = stream.tell()  # of the pickles; each storage follows, behind a length of 8 bytes
    dense = [tensor.untyped_storage() for tensor in state.values() if unsupported_kind(tensor) is None]
    end += sum({storage._cdata: 8 + storage.nbytes() for storage in dense}.values())
    if file.size < end:
        raise CheckpointError(f"{file.path}: is truncated: {file.size} bytes of at least {end}; download it again")
    whole = _Legacy(file)
    entries = []
    for name, tensor in state.items():
        record = TensorRecord(name, tuple(tensor.shape), tensor.dtype, file.path, unsupported_kind(tensor))
        entries.append(Entry(record, _LegacyTensor(whole, name)))
    return range(file.size), entries
