"""`.litertlm` bundles: a model, its tokenizer and what LiteRT-LM must know to run it, in one file.

Sections, in this order: the model (TFLiteModel, at MODEL_OFFSET), the tokenizer (HF_Tokenizer_Zlib or SP_Tokenizer),
LlmMetadataProto, and FlatLM's manifest (GenericBinaryData, JSON). The model comes first, so that an exporter writes it
into its place and then calls `finish_bundle`; the manifest comes last, so that a measured error can be put into it. It has
a section of its own because the header, which holds key-values, may not exceed 16 KiB.

What LiteRT-LM 0.18.1 takes for granted of the model, found by running it:

- Signatures are found by name: `decode`, and all that begin with `prefill`. The cache's length is dimension 2 of the first
  `kv_cache_k_*`, so keys must be [B, K, S, H] (where there is a `mask` input, its last dimension is taken instead).
- A prompt of n tokens prefills n - 1, in chunks of the signatures' lengths; `decode` takes the last one. A chunk is padded
  with token 0 **at position 0**: a model must write to consecutive slots from `input_pos[0]`, not to the slots of `input_pos`.
- A padded chunk must fit behind what the cache holds, or the prompt is refused. So the last T - 1 slots, for the shortest
  prefill's T, take no prompt: a short prefill signature lets conversations fill the cache.
- The prompt is at most S - 1 tokens, and the answer ends where both together are S.

Metadata: see BundleMetadata. `litert-lm run` caches packed weights beside the bundle (`*.xnnpack_cache`, named by time and size).
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from flatlm import __version__
from flatlm.convert.bundle_container import ALIGNMENT, Section, aligned, read_header, write_header
from flatlm.convert.bundle_metadata import BundleMetadata, BundleSampler, pack_metadata, unpack_metadata
from flatlm.errors import ExportError, OutputError, RuntimeFileError

__all__ = [
    "MODEL_OFFSET",
    "Bundle",
    "BundleMetadata",
    "BundleSampler",
    "TokenizerSource",
    "finish_bundle",
    "read_bundle",
    "replace_manifest",
    "write_bundle",
]

MODEL_OFFSET = ALIGNMENT
"""Where the model begins in a bundle that FlatLM writes: a multiple of pages and of any alignment of the buffers in it."""

TokenizerKind = Literal["hf", "sentencepiece"]
_TOKENIZER_SECTIONS: Mapping[TokenizerKind, str] = {"hf": "HF_Tokenizer_Zlib", "sentencepiece": "SP_Tokenizer"}
_MODEL_ITEMS = {"model_type": "tf_lite_prefill_decode"}
_MANIFEST_ITEMS = {"name": "flatlm_manifest.json"}
_PRODUCER = {"producer": f"flatlm {__version__}"}
_COPY_CHUNK = 64 * 2**20


@dataclass(frozen=True)
class TokenizerSource:
    """A tokenizer's file: `tokenizer.json` ("hf") or a SentencePiece model ("sentencepiece").

    Prefer "hf" where there are both: LiteRT-LM finds special tokens in a chat's text with it, and with SentencePiece only
    those that are user-defined pieces.
    """

    kind: TokenizerKind
    data: bytes


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read; its model stays in the file, at [model_offset, model_offset + model_size)."""

    model_offset: int
    model_size: int
    tokenizer: TokenizerSource
    metadata: BundleMetadata


def write_bundle(path: Path, *, model: Path, tokenizer: TokenizerSource, metadata: BundleMetadata) -> None:
    """Writes the bundle to `path`, with a copy of the file `model` that the kernel makes (shares, on btrfs and XFS).

    Writing a second time is what `finish_bundle` saves. Raises OutputError for `path`, RuntimeFileError for `model`.
    """
    try:
        source = model.open("rb")
    except OSError as error:
        raise RuntimeFileError(f"{model} cannot be read: {error.strerror}") from error
    with source, _writing(path), path.open("wb") as file:
        size = os.fstat(source.fileno()).st_size
        _copy(source.fileno(), file.fileno(), size)
    finish_bundle(path, model_size=size, tokenizer=tokenizer, metadata=metadata)


def finish_bundle(path: Path, *, model_size: int, tokenizer: TokenizerSource, metadata: BundleMetadata) -> None:
    """Makes a bundle of the file `path`, in which a model of `model_size` bytes lies at MODEL_OFFSET; what follows it is replaced.

    The header comes last: until then the file is no bundle. The same arguments give the same bytes.
    """
    tail: list[tuple[str, bytes, Mapping[str, str]]] = [
        (_TOKENIZER_SECTIONS[tokenizer.kind], _pack_tokenizer(tokenizer), {}),
        ("LlmMetadataProto", pack_metadata(metadata), {}),
        ("GenericBinaryData", _pack_manifest(metadata.manifest), _MANIFEST_ITEMS),
    ]
    with _writing(path), path.open("r+b") as file:
        sections = [Section("TFLiteModel", MODEL_OFFSET, MODEL_OFFSET + model_size, _MODEL_ITEMS)]
        if not _holds_model(file, sections[0]):
            raise ExportError(f"{path} has no TFLite model of {model_size} bytes at byte {MODEL_OFFSET}")
        file.truncate(sections[0].end)
        for kind, data, items in tail:
            begin = aligned(sections[-1].end)
            file.seek(begin)
            file.write(data)
            sections.append(Section(kind, begin, begin + len(data), items))
        write_header(file, sections, _PRODUCER)


def replace_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Puts another manifest into a bundle that FlatLM wrote: the last section and the header are written anew, nothing else."""
    with _writing(path), path.open("r+b") as file:
        sections = read_header(file, str(path))
        if not sections or sections[-1].items.get("name") != _MANIFEST_ITEMS["name"]:
            raise RuntimeFileError(f"{path} was not written by FlatLM: its last section is not a manifest")
        data, last = _pack_manifest(manifest), sections.pop()
        file.truncate(last.begin)
        file.seek(last.begin)
        file.write(data)
        write_header(file, [*sections, replace(last, end=last.begin + len(data))], _PRODUCER)


def read_bundle(path: Path) -> Bundle:
    """The bundle in `path`; RuntimeFileError for anything else, and for a bundle that is not whole."""
    try:
        with path.open("rb") as file:
            sections = read_header(file, str(path))
            model = _only(sections, "TFLiteModel", path)
            if not _holds_model(file, model):
                raise RuntimeFileError(f"{path} is corrupt: its model section holds no TFLite model")
            kind: TokenizerKind = "hf" if any(s.kind == _TOKENIZER_SECTIONS["hf"] for s in sections) else "sentencepiece"
            tokenizer = _read(file, _only(sections, _TOKENIZER_SECTIONS[kind], path))
            metadata = _read(file, _only(sections, "LlmMetadataProto", path))
            manifest = next((_read(file, s) for s in sections if s.items.get("name") == _MANIFEST_ITEMS["name"]), b"{}")
    except OSError as error:
        raise RuntimeFileError(f"{path} cannot be read: {error.strerror}") from error
    source = TokenizerSource(kind, _inflate(tokenizer, path) if kind == "hf" else tokenizer)
    return Bundle(model.begin, model.size, source, unpack_metadata(metadata, manifest, str(path)))


def _only(sections: list[Section], kind: str, path: Path) -> Section:
    found = [s for s in sections if s.kind == kind]
    if len(found) != 1:
        raise RuntimeFileError(f"{path} has {len(found)} {kind} sections, not one: it has {', '.join(s.kind for s in sections) or 'none'}")
    return found[0]


def _read(file: BinaryIO, section: Section) -> bytes:
    file.seek(section.begin)
    return file.read(section.size)


def _holds_model(file: BinaryIO, section: Section) -> bool:
    file.seek(section.begin)
    return section.end <= os.fstat(file.fileno()).st_size and file.read(8)[4:] == b"TFL3"


def _pack_tokenizer(tokenizer: TokenizerSource) -> bytes:
    """The section's bytes: a `tokenizer.json` is deflated, behind its size (uint64)."""
    if tokenizer.kind == "hf":
        return len(tokenizer.data).to_bytes(8, "little") + zlib.compress(tokenizer.data)
    return tokenizer.data


def _pack_manifest(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, ensure_ascii=False).encode()


def _inflate(data: bytes, path: Path) -> bytes:
    size, stream = int.from_bytes(data[:8], "little"), zlib.decompressobj()
    try:
        inflated = stream.decompress(data[8:], max(size, 1))
    except (zlib.error, OverflowError) as error:
        raise RuntimeFileError(f"{path} is corrupt: its tokenizer cannot be inflated ({error})") from error
    if len(inflated) != size or not stream.eof:
        raise RuntimeFileError(f"{path} is corrupt: its tokenizer is not the {size} bytes that it says")
    return inflated


def _copy(source: int, target: int, size: int) -> None:
    """Copies the first `size` bytes of the file `source` to MODEL_OFFSET of the file `target`."""
    done = 0
    while done < size:
        try:
            copied = os.copy_file_range(source, target, min(size - done, 2**30), done, MODEL_OFFSET + done)
        except (AttributeError, OSError):  # not on this system, or not between these file systems
            copied = os.pwrite(target, os.pread(source, min(size - done, _COPY_CHUNK), done), MODEL_OFFSET + done)
        if not copied:
            raise OSError(None, f"the model ends after {done} of its {size} bytes")
        done += copied


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
