"""A checkpoint directory, read lazily and safely: names, shapes and dtypes first, then any rows of any tensor.

Safetensors files are preferred to torch's where both are there, and of each kind one file to an index, and an index to a
collection of files. Files are read as data: no pickled code runs, nothing outside the directory is opened (but for what the
directory's own links point to, as in a Hugging Face cache), and what is truncated, corrupt or contradictory is an error that
says so before any value is read.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType

import torch

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints import safetensors_file, torch_file
from flatlm.utilities.checkpoints.files import Entry, TensorRecord, WeightsFile

__all__ = ["Checkpoint", "TensorRecord"]

MAX_INDEX = 64 * 2**20
"""Bytes of an index; that of a large model takes under 1 MiB."""

TRAINER_STATE = ("optimizer", "scheduler", "scaler", "rng_state", "training_args")
"""Beginnings of the names of .pt and .pth files that hold a training run's state, not weights."""

_OTHER_KINDS = {".gguf": "llama.cpp", ".h5": "TensorFlow", ".msgpack": "Flax", ".onnx": "ONNX", ".npz": "NumPy", ".ot": "rust-bert"}
_SHARD = re.compile(r"^(?P<stem>.*)-(?P<number>\d{1,6})-of-(?P<count>\d{1,6})(?P<suffix>\.\w+)$")
_CHUNK = 2**20


class Checkpoint:
    """The tensors of a checkpoint directory.

        with Checkpoint.open(directory) as checkpoint:
            record = checkpoint.tensors["model.embed_tokens.weight"]
            rows = checkpoint.rows(record.name, 0, 256)

    Several threads may read at once; closing while they do is a mistake.
    """

    def __init__(self, directory: Path, files: list[WeightsFile], headers: list[range], entries: dict[str, Entry]) -> None:
        """Use `Checkpoint.open`."""
        self.directory = directory
        self.tensors: Mapping[str, TensorRecord] = MappingProxyType({name: entry.record for name, entry in entries.items()})
        self._files, self._headers, self._entries = files, headers, entries
        self._closed = False

    @classmethod
    def open(cls, directory: str | Path) -> Checkpoint:
        """Read the headers of the checkpoint's files. CheckpointError names the file or tensor at fault and the way out."""
        directory = Path(directory)
        index, paths = _find(directory)
        opened: list[WeightsFile] = []
        try:
            headers, entries = [], dict[str, Entry]()
            for path in paths:
                opened.append(WeightsFile(path))
                kind = safetensors_file if path.suffix == ".safetensors" else torch_file
                header, found = kind.read_header(opened[-1])
                headers.append(header)
                for entry in found:
                    if other := entries.get(entry.record.name):
                        raise CheckpointError(
                            f"{directory}: tensor {entry.record.name!r} is in two files, {other.record.file.name} and {path.name}; "
                            "keep the files of one checkpoint only"
                        )
                    entries[entry.record.name] = entry
            if index is not None:
                _check_index(index, entries)
            if not entries:
                raise CheckpointError(f"{directory}: {', '.join(path.name for path in paths)}: no tensors in it; download it again")
        except BaseException:
            for file in opened:
                file.close()
            raise
        return cls(directory, opened, headers, entries)

    def rows(self, name: str, start: int, stop: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """Rows [start, stop) of the first dimension, in the stored dtype: [stop - start, ...].

        `out` (contiguous, on the CPU, of that shape and dtype) is filled and returned; memory that was used before is faster to
        fill than new memory. Raises CheckpointError for an unknown or unsupported tensor, ValueError for rows that are not there.
        """
        shape = self._record(name).shape
        if not shape:
            raise ValueError(f"{name}: a scalar has no rows; use read()")
        if not 0 <= start <= stop <= shape[0]:
            raise ValueError(f"{name}: rows [{start}, {stop}) are not within its {shape[0]} rows")
        return self._fill(name, (stop - start, *shape[1:]), start, out)

    def read(self, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
        """The whole tensor, in the stored dtype. As `rows` otherwise."""
        return self._fill(name, self._record(name).shape, 0, out)

    def fingerprint(self) -> str:
        """A SHA-256, in hexadecimal, that tells checkpoints apart without reading them.

        It takes in, for each file by name, the JSON line ["file", name, size, SHA-256 of the header] (name relative to the
        directory; header: a safetensors file's first 8 + N bytes, a torch file's `data.pkl`, all of a legacy torch file), then for
        each tensor by name the JSON line ["tensor", name, dtype, shape, bytes sampled] and the first 4 KiB of its stored bytes
        (none of a legacy file, which is in the header, and none of an unsupported tensor of a torch file). So a change that leaves
        all of these alone goes unseen.
        """
        self._check_open()
        digest = hashlib.sha256()

        def line(*values: object) -> None:
            digest.update(json.dumps(values, ensure_ascii=True).encode() + b"\n")

        names = [file.path.relative_to(self.directory).as_posix() for file in self._files]
        for name, file, header in sorted(zip(names, self._files, self._headers, strict=True), key=lambda item: item[0]):
            line("file", name, file.size, _hash(file, header))
        for name in sorted(self._entries):
            record, sample = self.tensors[name], self._entries[name].source.sample()
            line("tensor", name, record.unsupported or str(record.dtype).removeprefix("torch."), record.shape, len(sample))
            digest.update(sample)
        return digest.hexdigest()

    def close(self) -> None:
        """Close the files. Closing twice does no harm."""
        self._closed = True
        for file in self._files:
            file.close()
        self._entries = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"{self.directory}: this Checkpoint was closed")

    def _record(self, name: str) -> TensorRecord:
        record = self.tensors.get(name)
        if record is None:
            near = difflib.get_close_matches(name, self.tensors, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {len(self.tensors)} tensors, such as {next(iter(self.tensors))!r}"
            raise CheckpointError(f"{self.directory}: no tensor {name!r}; {hint}")
        return record

    def _fill(self, name: str, shape: tuple[int, ...], start: int, out: torch.Tensor | None) -> torch.Tensor:
        self._check_open()
        record = self.tensors[name]
        if record.unsupported is not None:
            raise CheckpointError(
                f"{record.file}: tensor {name!r} is stored as {record.unsupported}, which FlatLM does not read; "
                "use a checkpoint in float32, float16 or bfloat16, or convert this one with the tool that made it"
            )
        if out is None:
            out = torch.empty(shape, dtype=record.dtype)
        elif (tuple(out.shape), out.dtype) != (shape, record.dtype) or not out.is_contiguous() or out.device.type != "cpu":
            raise ValueError(f"{name}: out must be contiguous, on the CPU, of shape {shape} and {record.dtype}")
        self._entries[name].source.fill(out, start)
        return out


def _hash(file: WeightsFile, span: range) -> str:
    digest = hashlib.sha256()
    for offset in range(span.start, span.stop, _CHUNK):
        digest.update(file.read(offset, min(_CHUNK, span.stop - offset)))
    return digest.hexdigest()


class _Index:
    """An index file: which shard of the directory holds each tensor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_INDEX + 1)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        if len(data) > MAX_INDEX:
            raise CheckpointError(f"{path}: is larger than {MAX_INDEX} bytes, too large for an index; download it again")
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: is not JSON ({error}); download it again") from error
        shards = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
            raise CheckpointError(f"{path}: has no weight_map from tensors' names to files' names; download it again")
        self.shards: dict[str, str] = shards

    def paths(self) -> list[Path]:
        names = sorted(set(self.shards.values()))
        for name in names:
            # Checked as text, not by what it resolves to: the directory's own links may lead elsewhere, as those of a cache do.
            if "\\" in name or "\0" in name or ":" in name or not all(part.strip(".") for part in name.split("/")):
                raise CheckpointError(
                    f"{self.path}: names the file {name!r}, which is not plainly inside the checkpoint's directory; nothing else is read"
                )
        paths = [self.path.parent / name for name in names]
        missing = [name for name, path in zip(names, paths, strict=True) if not path.exists()]
        if missing:
            raise CheckpointError(f"{self.path}: names files that are not there: {_some(missing)}; download them too")
        return paths


def _check_index(index: _Index, entries: Mapping[str, Entry]) -> None:
    """Every tensor of the index is where it says. Tensors that only the shards know are welcome: the weights' plan will judge them."""
    wrong = []
    for name, shard in index.shards.items():
        if name not in entries:
            wrong.append(f"{name!r} is not in {shard}")
        elif entries[name].record.file != index.path.parent / shard:
            wrong.append(f"{name!r} is not in {shard} but in {entries[name].record.file.name}")
    if wrong:
        raise CheckpointError(f"{index.path}: disagrees with its files: {_some(wrong)}; download index and files of the same version")


def _find(directory: Path) -> tuple[_Index | None, list[Path]]:
    """The directory's weights: its index if it has one, and the files."""
    try:
        names = sorted(path.name for path in directory.iterdir() if path.is_file() or path.is_symlink())
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory}: does not exist; give the directory that holds config.json and the weights") from error
    except NotADirectoryError as error:
        raise CheckpointError(f"{directory}: is not a directory; give the directory that holds it, config.json and all weights") from error
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be listed: {error.strerror}") from error
    for single, pattern in (("model.safetensors", "*.safetensors"), ("pytorch_model.bin", "pytorch_model*.bin")):
        if single in names:
            return None, [directory / single]
        if f"{single}.index.json" in names:
            index = _Index(directory / f"{single}.index.json")
            return index, index.paths()
        if several := _matching(names, pattern):
            _check_shards(directory, several)
            return None, [directory / name for name in several]
    torch_files = [name for name in _matching(names, "*.pt") + _matching(names, "*.pth") if not name.startswith(TRAINER_STATE)]
    if torch_files:
        return None, [directory / name for name in sorted(torch_files)]
    raise CheckpointError(_no_weights(directory, names))


def _matching(names: list[str], pattern: str) -> list[str]:
    return [name for name in names if Path(name).match(pattern)]


def _check_shards(directory: Path, names: list[str]) -> None:
    """Without an index, names like model-00002-of-00005.safetensors still tell which files should be there."""
    for match in filter(None, map(_SHARD.match, names)):
        stem, number, count, suffix = match.group("stem", "number", "count", "suffix")
        every = [f"{stem}-{i:0{len(number)}}-of-{count}{suffix}" for i in range(int(count) + 1)]  # some count from 0
        missing = [name for name in (every[:-1] if every[0] in names else every[1:]) if name not in names]
        if missing:
            raise CheckpointError(f"{directory}: has {match[0]} but not {_some(missing)}; download all of the checkpoint's files")


def _no_weights(directory: Path, names: list[str]) -> str:
    text = f"{directory}: has no weights: neither model.safetensors, pytorch_model.bin, their index, *.safetensors, *.pt nor *.pth"
    for suffix, kind in _OTHER_KINDS.items():
        if found := _matching(names, f"*{suffix}"):
            return f"{text}; {found[0]} is of {kind}: get the same model's safetensors files"
    if found := [name for name in names if name.startswith(TRAINER_STATE)]:
        return f"{text}; {found[0]} is a training run's state: give the directory where the run saved its model"
    return f"{text}; download them next to config.json"


def _some(items: list[str]) -> str:
    shown = ", ".join(items[:5])
    return shown if len(items) <= 5 else f"{shown} and {len(items) - 5} more"
