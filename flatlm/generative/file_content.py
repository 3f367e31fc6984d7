"""What a file that can be loaded holds: its signatures, their tensors, its caches' slots, its manifest; read without loading it.

LiteRT's loader trusts a flatbuffer whose weights lie at offsets: a truncated file ends the process with a segmentation
fault. So every index and range that the loader follows is followed here first. Weights are not read.
"""

import json
import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flatlm.convert.signatures import DECODE, MANIFEST_KEY, POSITION_IDS, read_name
from flatlm.errors import RuntimeFileError

CACHE_PREFIX = "kv_cache_"
MASK = "mask"
"""The input of files that are told what each token may see, as litert-torch writes them on request: added to the scores, [1, 1, T, S]."""
DECODER = "decoder"
"""The kind of files whose manifest names none."""
INFILLING = "infilling"
"""Files of decoders that fill blanks: theirs and two inputs more (`convert.signatures.PLACE_INPUTS`)."""
ENCODER = "encoder"
_IDENTIFIER = b"TFL3"
_BUNDLE_MAGIC = b"LITERTLM"
_EXTERNAL = 1
"""A buffer whose offset is above this lies outside the flatbuffer; 0 and 1 say that its bytes are in it."""


@dataclass(frozen=True)
class TensorSpec:
    """A signature's input or output."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class SignatureSpec:
    """One signature: what it takes and gives, by name."""

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    @property
    def length(self) -> int:
        """T: the tokens of one call."""
        return self.inputs["tokens"].shape[1]

    @property
    def caches(self) -> dict[str, TensorSpec]:
        return {name: spec for name, spec in self.inputs.items() if name.startswith(CACHE_PREFIX)}

    @property
    def mask_slots(self) -> int | None:
        """S of the mask that it takes; None where it makes its own."""
        return self.inputs[MASK].shape[-1] if MASK in self.inputs else None

    @property
    def fills_blanks(self) -> bool:
        """Is it told places and a context's length (`layers.infilling`)?"""
        return POSITION_IDS in self.inputs


@dataclass(frozen=True)
class FileContent:
    """What any model that can be loaded says of itself, whatever its conventions, at [offset, offset + size) of the file."""

    path: Path
    offset: int
    size: int
    signatures: tuple[SignatureSpec, ...]
    manifest: Mapping[str, Any]
    """FlatLM's; empty where another tool wrote the file."""
    cache_slots: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of each cache, as each signature that decodes updates it."""

    @property
    def kind(self) -> str:
        """Of model, as the manifest says: a decoder, where it says nothing."""
        return str(self.manifest.get("kind", DECODER))


def read_content(path: Path) -> FileContent:
    """Reads and checks a `.tflite` file, or the model in a `.litertlm` bundle; RuntimeFileError for anything else."""
    try:
        with path.open("rb") as file:
            offset, size = 0, os.fstat(file.fileno()).st_size
            if file.read(len(_BUNDLE_MAGIC)) == _BUNDLE_MAGIC:
                from flatlm.convert.bundle import read_bundle

                bundle = read_bundle(path)
                offset, size = bundle.model_offset, bundle.model_size
        with _mapped(path, offset, size) as content:
            signatures, slots, manifest = _parse(path, content)
    except OSError as error:
        raise RuntimeFileError(f"{path} cannot be read: {error.strerror}") from error
    if not signatures:
        raise RuntimeFileError(f"{path} has no signatures, so nothing in it can be run by name")
    return FileContent(path, offset, size, tuple(signatures), manifest, slots)


@contextmanager
def _mapped(path: Path, offset: int, size: int) -> Iterator[mmap.mmap | memoryview]:
    """The file's [offset, offset + size), mapped."""
    begin = offset - offset % mmap.ALLOCATIONGRANULARITY
    with path.open("rb") as file:
        if size < 8 or os.fstat(file.fileno()).st_size < offset + size:
            raise RuntimeFileError(f"{path} is empty or truncated: no model of {size} bytes is in it")
        mapping = mmap.mmap(file.fileno(), offset - begin + size, access=mmap.ACCESS_READ, offset=begin)
        # Not closed by hand: numpy arrays that look into it would forbid that. It goes with the last of them.
        yield memoryview(mapping)[offset - begin :]


def _parse(path: Path, content: Any) -> tuple[list[SignatureSpec], dict[str, tuple[int, ...]], Mapping[str, Any]]:
    """The signatures, the slots of each cache as those have them that decode, and the manifest."""
    if content[4:8] != _IDENTIFIER:
        raise RuntimeFileError(f"{path} is not a TFLite model: its bytes 4 to 8 are {bytes(content[4:8])!r}, not {_IDENTIFIER!r}")
    from ai_edge_litert import schema_py_generated as schema

    try:
        model = schema.Model.GetRootAsModel(content, 0)
        _check_buffers(model, len(content))
        codes = [model.OperatorCodes(i).BuiltinCode() for i in _indices(model.OperatorCodesLength(), content)]
        graphs = [_Graph.read(model.Subgraphs(i), model, content) for i in _indices(model.SubgraphsLength(), content)]
        signatures, slots = [], dict[str, tuple[int, ...]]()
        for definition in (model.SignatureDefs(i) for i in _indices(model.SignatureDefsLength(), content)):
            graph = graphs[definition.SubgraphIndex()]
            inputs = {item.Name().decode(): item.TensorIndex() for item in map(definition.Inputs, range(definition.InputsLength()))}
            outputs = {item.Name().decode(): item.TensorIndex() for item in map(definition.Outputs, range(definition.OutputsLength()))}
            spec = SignatureSpec(definition.SignatureKey().decode(), graph.specs(inputs), graph.specs(outputs))
            signatures.append(spec)
            if read_name(spec.name)[0] == DECODE and schema.BuiltinOperator.DYNAMIC_UPDATE_SLICE in codes:
                caches = {index for name, index in inputs.items() if name.startswith(CACHE_PREFIX)}
                slots[spec.name] = tuple(graph.cache_slots(caches, codes.index(schema.BuiltinOperator.DYNAMIC_UPDATE_SLICE)))
        return signatures, slots, manifest_of(model)
    except _UNREADABLE as error:
        raise RuntimeFileError(f"{path} is corrupt or truncated: {error}") from error


def manifest_of(model: Any) -> Mapping[str, Any]:
    """FlatLM's manifest in a model's metadata; empty where another tool wrote it."""
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        if entry.Name() == MANIFEST_KEY.encode():
            try:
                text = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes().strip()
                manifest = json.loads(text or "{}")  # its space is kept before it is known
            except (ValueError, AttributeError) as error:
                raise RuntimeFileError(f"the file's metadata {MANIFEST_KEY} is not JSON: it was damaged after its export") from error
            return manifest if isinstance(manifest, dict) else {}
    return {}


_UNREADABLE = (struct.error, IndexError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)
"""flatbuffers has no verifier in Python: offsets that point outside show up as any of these."""


def _check_buffers(model: Any, size: int) -> None:
    for i in range(model.BuffersLength()):
        buffer = model.Buffers(i)
        if buffer.Offset() <= _EXTERNAL:
            buffer.DataAsNumpy()  # numpy refuses a vector that ends outside
        elif (end := buffer.Offset() + buffer.Size()) > size:
            raise ValueError(f"buffer {i} ends at byte {end} of a model of {size} bytes")


def _indices(count: int, content: Any) -> range:
    """A vector's indices; a length that the file has no room for is refused, not looped over."""
    if count * 4 > len(content):
        raise ValueError(f"a list of {count} entries in {len(content)} bytes")
    return range(count)


@dataclass(frozen=True)
class _Graph:
    """A subgraph whose every index is within bounds."""

    tensors: list[TensorSpec]
    operators: list[tuple[int, list[int]]]
    """Of each, the index of its code, and its inputs."""

    @classmethod
    def read(cls, graph: Any, model: Any, content: Any) -> "_Graph":
        tensors = []
        for tensor in (graph.Tensors(i) for i in _indices(graph.TensorsLength(), content)):
            _within(tensor.Buffer(), model.BuffersLength(), "buffer")
            tensors.append(TensorSpec(tuple(_numbers(tensor.ShapeAsNumpy())), _dtype(tensor.Type())))
        operators = []
        for operator in (graph.Operators(i) for i in _indices(graph.OperatorsLength(), content)):
            _within(operator.OpcodeIndex(), model.OperatorCodesLength(), "operator code")
            inputs = _numbers(operator.InputsAsNumpy())
            for index in (*inputs, *_numbers(operator.OutputsAsNumpy())):
                _within(index + 1, len(tensors) + 1, "tensor")  # -1: an optional input left out
            operators.append((operator.OpcodeIndex(), inputs))
        for index in (*_numbers(graph.InputsAsNumpy()), *_numbers(graph.OutputsAsNumpy())):
            _within(index, len(tensors), "tensor")
        return cls(tensors, operators)

    def specs(self, indices: Mapping[str, int]) -> dict[str, TensorSpec]:
        return {name: self.tensors[index] for name, index in indices.items()}

    def cache_slots(self, caches: Iterable[int], update: int) -> Iterator[int]:
        """The slots of each cache: its size along the axis in which one token's update is smaller than it, whatever the layout."""
        for code, inputs in self.operators:
            if code == update and inputs[0] in caches:
                whole, part = self.tensors[inputs[0]].shape, self.tensors[inputs[1]].shape
                yield from (a for a, b in zip(whole, part, strict=True) if a != b)


def _numbers(vector: Any) -> list[int]:
    """An int32 vector's values; flatbuffers gives 0 in place of an absent one."""
    return [] if isinstance(vector, int) else [int(n) for n in vector]


def _within(index: int, count: int, what: str) -> None:
    if not 0 <= index < count:
        raise ValueError(f"{what} {index} of {count}")


def _dtype(code: int) -> np.dtype[Any]:
    from ai_edge_litert.schema_py_generated import TensorType

    known = {TensorType.FLOAT32: "f4", TensorType.FLOAT16: "f2", TensorType.INT32: "i4", TensorType.INT8: "i1", TensorType.BOOL: "?"}
    return np.dtype(known.get(code, "V1"))
