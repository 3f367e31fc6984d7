"""A GGUF file as a checkpoint: tensors by transformers' names and in its layout, dequantized by the rows that are asked for.

Values come from the gguf library's own formulas. What llama.cpp's converter did to a tensor is undone while its rows are read
(`gguf_names.py` says what), so only those rows are ever in memory; but for a transposed matrix, of which all is read each time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import gguf
import numpy as np
import torch

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.files import SAMPLE_BYTES, TensorRecord, WeightsFile, as_bytes
from flatlm.utilities.checkpoints.gguf_header import GgufHeader, GgufTensor, read_header
from flatlm.utilities.checkpoints.gguf_names import ARCHITECTURES, ROPE_TENSORS, GgufArchitecture
from flatlm.utilities.checkpoints.gguf_paths import shards

STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
QUANTIZED = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS".split()  # noqa: SIM905 - reads better
SUPPORTED = (*STORED, *QUANTIZED)
"""Types whose values can be read; the quantized ones give float32."""

_NAME = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<stem>[a-z0-9_]+)(?P<suffix>\.weight|\.bias|)")
_GAP = 256
"""Rows between two wanted ones that are read along: the halves of a head lie closer than that."""
_CHUNK = 4 << 20
_Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class _Part:
    """How a tensor of transformers is made from the file's. `rows` maps its rows to the file's; `shift` is added."""

    shape: tuple[int, ...]
    first: int = 0
    interleaved: int = 0
    """Rows of a head, whose pairs are to become halves; 0: none."""
    groups: tuple[int, int, int] | None = None
    """(query heads in a group, groups, rows of a head) of a merged projection to be grouped."""
    transposed: bool = False
    of_row: int | None = None
    """The tensor is this one row of the file's."""
    shift: float = 0.0

    def rows(self, wanted: _Array) -> _Array:
        if self.interleaved:
            within, half = wanted % self.interleaved, self.interleaved // 2
            source: _Array = wanted - within + within % half * 2 + within // half
            return source
        if self.groups:
            queries, groups, width = self.groups
            group, place = np.divmod(wanted // width, queries + 2)
            source = np.where(place < queries, group * queries + place, place * groups + group) * width + wanted % width
            return source
        return wanted + self.first


class GgufCheckpoint:
    """The tensors of a GGUF file (or of all shards of a split one), as `Checkpoint` has those of a directory."""

    def __init__(
        self, named: Path, files: list[WeightsFile], headers: list[GgufHeader], sources: Mapping[str, tuple[GgufTensor, _Part]]
    ) -> None:
        """Use `GgufCheckpoint.open`."""
        self.directory, self.metadata = named, headers[0].metadata
        self.stored: Mapping[str, GgufTensor] = {tensor.name: tensor for header in headers for tensor in header.tensors}
        """The file's own tensors, by their own names."""
        self._files, self._headers, self._sources, self._closed = files, headers, sources, False
        self.tensors: Mapping[str, TensorRecord] = MappingProxyType(
            {name: TensorRecord(name, part.shape, _dtype(tensor, part), tensor.file.path) for name, (tensor, part) in sources.items()}
        )

    @classmethod
    def open(cls, file: str | Path, *, named: str | Path | None = None) -> GgufCheckpoint:
        """Read the headers. `named`: what the user called it. CheckpointError says which file, tensor or key is at fault."""
        headers: list[GgufHeader] = []
        opened: list[WeightsFile] = []
        try:
            for path in shards(Path(file)):
                opened.append(WeightsFile(path))
                headers.append(read_header(opened[-1]))
            sources = dict(_sources(headers))
        except BaseException:
            for item in opened:
                item.close()
            raise
        return cls(Path(named or file), opened, headers, sources)

    @property
    def transformers_reads(self) -> bool:
        """Whether transformers' own reader of GGUF files gets every tensor right."""
        return len(self._files) == 1 and architecture_of(self._headers[0]).transformers_reads

    def rows(self, name: str, start: int, stop: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """Rows [start, stop) of the first dimension: as stored, or dequantized to float32. As `Checkpoint.rows` otherwise."""
        record, (tensor, part) = self._find(name)
        if not 0 <= start <= stop <= record.shape[0]:
            raise ValueError(f"{name}: rows [{start}, {stop}) are not within its {record.shape[0]} rows")
        found = _read(tensor, part, start, stop)
        if out is None:
            return found
        if (out.shape, out.dtype) != (found.shape, found.dtype):
            raise ValueError(f"{name}: out must be of shape {tuple(found.shape)} and {found.dtype}")
        return out.copy_(found)

    def read(self, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """The whole tensor."""
        return self.rows(name, 0, self._find(name)[0].shape[0], out)

    def fingerprint(self) -> str:
        """A SHA-256, in hexadecimal, of the headers and of the first 4 KiB of each tensor."""
        self._check_open()
        digest = hashlib.sha256()
        for header, file in zip(self._headers, self._files, strict=True):
            digest.update(json.dumps(["file", file.size, header.size]).encode() + b"\n")
            for offset in range(0, header.size, _CHUNK):
                digest.update(file.read(offset, min(_CHUNK, header.size - offset)))
        for name in sorted(self.stored):
            tensor = self.stored[name]
            digest.update(tensor.file.read(tensor.offset, min(tensor.nbytes, SAMPLE_BYTES)))
        return digest.hexdigest()

    def close(self) -> None:
        """Close the files. Closing twice does no harm."""
        self._closed = True
        for file in self._files:
            file.close()

    def __enter__(self) -> GgufCheckpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"{self.directory}: this checkpoint was closed")

    def _find(self, name: str) -> tuple[TensorRecord, tuple[GgufTensor, _Part]]:
        self._check_open()
        if name not in self.tensors:
            raise CheckpointError(
                f"{self.directory}: no tensor {name!r}; it has {len(self.tensors)} tensors, such as {next(iter(self.tensors))!r}"
            )
        return self.tensors[name], self._sources[name]


def values_of(tensor: GgufTensor) -> torch.Tensor:
    """All values of a small tensor, as the file has them."""
    return _read(tensor, _Part(tensor.shape), 0, tensor.shape[0])


def architecture_of(header: GgufHeader) -> GgufArchitecture:
    """Raises CheckpointError for one that is not known."""
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise CheckpointError(
            f"{header.path}: general.architecture is {name!r}, which FlatLM does not read from GGUF files; it reads "
            f"{', '.join(sorted(ARCHITECTURES))}: get the same model's safetensors files"
        )
    return ARCHITECTURES[name]


def _sources(headers: list[GgufHeader]) -> Iterator[tuple[str, tuple[GgufTensor, _Part]]]:
    """Every tensor by transformers' name. What the table does not know keeps its own: the weights' plan will judge it."""
    architecture = architecture_of(headers[0])
    split = headers[0].metadata.get("split.count", 1)
    if split not in (0, len(headers)):
        raise CheckpointError(f"{headers[0].path}: is one of {split} files; give them their first names, ...-00001-of-{split:05d}.gguf")
    names = dict(architecture.tensors)
    stored = {tensor.name for header in headers for tensor in header.tensors}
    for condition, more in architecture.variants.items():
        names |= more if condition in stored else {}
    seen: dict[str, GgufTensor] = {}
    for header in headers:
        for tensor in header.tensors:
            if tensor.name in seen:
                raise CheckpointError(f"{header.path}: tensor {tensor.name!r} is in {seen[tensor.name].file.path.name} too")
            seen[tensor.name] = tensor
            if tensor.name in ROPE_TENSORS:
                continue
            if tensor.kind not in SUPPORTED:
                raise CheckpointError(
                    f"{header.path}: tensor {tensor.name!r} is stored as {tensor.kind}, which FlatLM does not read; it reads "
                    f"{', '.join(SUPPORTED)}: get the model in one of these, or its safetensors files"
                )
            for name, part in _parts(tensor, architecture, names, headers[0]):
                yield name, (tensor, part)
    if not seen:
        raise CheckpointError(f"{headers[0].path}: no tensors in it; download it again")


def _parts(tensor: GgufTensor, architecture: GgufArchitecture, names: Mapping[str, str], header: GgufHeader) -> Iterator[tuple[str, _Part]]:
    match = _NAME.fullmatch(tensor.name)
    layer, stem, suffix = match.group("layer", "stem", "suffix") if match else (None, "", "")
    shape, rows = tensor.shape, tensor.shape[0]
    if stem in architecture.split:
        queries, keys, width = _heads(tensor, header)
        sizes, first = (queries * width, keys * width, keys * width), 0
        _require(sum(sizes) == rows, tensor, f"its rows are not those of {queries} query heads and {keys} key and value heads")
        for name, size in zip(architecture.split[stem], sizes, strict=True):
            yield name.format(layer) + suffix, _Part((size, *shape[1:]), first)
            first += size
    elif stem in architecture.stacked:
        _require(len(shape) == 2, tensor, "it is not a matrix, with a row for each head")
        for head in range(rows):
            yield architecture.stacked[stem].format(layer, head) + suffix, _Part(shape[1:], of_row=head)
    elif stem not in names:
        yield tensor.name, _Part(shape)
    else:
        name = names[stem].format(layer) + suffix
        if architecture.interleaved and stem in ("attn_q", "attn_k"):
            queries, keys, _ = _heads(tensor, header)
            heads = queries if stem == "attn_q" else keys
            _require(rows % (2 * heads) == 0, tensor, f"its rows are not pairs for each of {heads} heads")
            yield name, _Part(shape, interleaved=rows // heads)
        elif stem in architecture.grouped:
            queries, keys, width = _heads(tensor, header)
            _require(rows == (queries + 2 * keys) * width, tensor, f"its rows are not those of {queries} query and {keys} key heads")
            yield name, _Part(shape, groups=(queries // keys, keys, width))
        elif stem in architecture.transposed and suffix == ".weight":
            _require(len(shape) == 2, tensor, "it is not a matrix")
            yield name, _Part(shape[::-1], transposed=True)
        elif architecture.shifted_norms and stem.endswith("norm"):
            yield name, _Part(shape, shift=-1.0)
        else:
            yield name, _Part(shape)


def _heads(tensor: GgufTensor, header: GgufHeader) -> tuple[int, int, int]:
    """Query heads, key heads, rows of a head."""
    prefix = header.metadata["general.architecture"]
    found: dict[str, int] = {}
    for key in ("attention.head_count", "attention.head_count_kv", "embedding_length", "attention.key_length"):
        value = header.metadata.get(f"{prefix}.{key}")
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()  # one number for each layer
        if value is not None:
            _require(type(value) is int and value > 0, tensor, f"{prefix}.{key} = {value}")
            found[key] = value
    queries = found.get("attention.head_count", 0)
    keys = found.get("attention.head_count_kv", queries)
    _require(queries > 0 and queries % keys == 0, tensor, f"{prefix} has {queries} query heads and {keys} key heads")
    return queries, keys, found.get("attention.key_length", found.get("embedding_length", 0) // queries)


def _require(holds: bool, tensor: GgufTensor, what: str) -> None:
    if not holds:
        raise CheckpointError(
            f"{tensor.file.path}: is corrupt: tensor {tensor.name!r} has shape {list(tensor.shape)}, but {what}; download it again"
        )


def _dtype(tensor: GgufTensor, part: _Part) -> torch.dtype:
    return torch.float32 if part.shift else STORED.get(tensor.kind, torch.float32)


def _read(tensor: GgufTensor, part: _Part, start: int, stop: int) -> torch.Tensor:
    if part.transposed:
        found = _columns(tensor, start, stop)
    elif part.of_row is not None:
        found = _stored_rows(tensor, part.of_row, part.of_row + 1)[0][start:stop]
    else:
        found = _scattered_rows(tensor, part.rows(np.arange(start, stop)))
    return found.float() + part.shift if part.shift else found


def _columns(tensor: GgufTensor, start: int, stop: int) -> torch.Tensor:
    """Columns [start, stop) of the file's matrix, as rows."""
    rows, columns = tensor.shape
    out = torch.empty(stop - start, rows, dtype=STORED.get(tensor.kind, torch.float32))
    step = max(1, _CHUNK // max(1, columns))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        out[:, first:last] = _stored_rows(tensor, first, last)[:, start:stop].T
    return out


def _scattered_rows(tensor: GgufTensor, wanted: _Array) -> torch.Tensor:
    """The wanted rows in their order: each stretch without large gaps is read at once."""
    if not len(wanted) or (np.diff(wanted) == 1).all():
        first = int(wanted[0]) if len(wanted) else 0
        return _stored_rows(tensor, first, first + len(wanted))
    inside = np.unique(wanted)
    breaks = np.flatnonzero(np.diff(inside) > _GAP) + 1
    out = torch.empty((len(wanted), *tensor.shape[1:]), dtype=STORED.get(tensor.kind, torch.float32))
    for stretch in np.split(inside, breaks):
        first, last = int(stretch[0]), int(stretch[-1])
        places = np.flatnonzero((wanted >= first) & (wanted <= last))
        out[torch.from_numpy(places)] = _stored_rows(tensor, first, last + 1)[torch.from_numpy(wanted[places] - first)]
    return out


def _stored_rows(tensor: GgufTensor, start: int, stop: int) -> torch.Tensor:
    """Rows [start, stop) as the file has them, dequantized."""
    shape = (stop - start, *tensor.shape[1:])
    out = torch.empty(shape, dtype=STORED.get(tensor.kind, torch.float32))
    if not out.numel():
        return out
    if len(tensor.shape) == 1 and tensor.kind not in STORED:  # blocks span its rows, which are single numbers
        raw = np.frombuffer(tensor.file.read(tensor.offset, tensor.nbytes), np.uint8)
        return torch.from_numpy(_dequantize(raw, tensor.kind)[start:stop].copy())
    row_bytes = tensor.nbytes // tensor.shape[0]
    if tensor.kind in STORED:
        tensor.file.read_into(as_bytes(out), tensor.offset + start * row_bytes)
        return out
    step = max(1, _CHUNK // (row_bytes * 8))
    for first in range(start, stop, step):
        last = min(first + step, stop)
        raw = np.frombuffer(tensor.file.read(tensor.offset + first * row_bytes, (last - first) * row_bytes), np.uint8)
        values = _dequantize(raw.reshape(last - first, row_bytes), tensor.kind)
        out[first - start : last - start] = torch.from_numpy(values).view(last - first, *shape[1:])
    return out


def _dequantize(raw: _Array, kind: str) -> _Array:
    with np.errstate(all="ignore"):  # the scales of a damaged file
        return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])  # type: ignore[no-any-return]
