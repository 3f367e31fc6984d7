"""What is in an exported file: signatures, operators, weights by scheme, sizes, manifest. Reads the flatbuffer only, no weights."""

import mmap
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from flatlm.convert.flatbuffer import BUILTIN_NAMES
from flatlm.generative.file_content import manifest_of, read_content

_TYPE_NAMES: dict[int, str] = {value: name.lower() for name, value in vars(schema.TensorType).items() if isinstance(value, int)}


@dataclass(frozen=True)
class SignatureSummary:
    """One entry point: tensors as `name: dtype[shape]`, and how often each operator occurs."""

    name: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    operators: Mapping[str, int]


@dataclass(frozen=True)
class Inspection:
    """What a file holds. `weights` maps a scheme, such as `int8 per channel`, to [tensors, bytes]."""

    file: Path
    bytes: int
    signatures: tuple[SignatureSummary, ...]
    weights: Mapping[str, tuple[int, int]]
    manifest: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"file": str(self.file)}


def inspect_file(path: Path) -> Inspection:
    """Raises RuntimeFileError where `path` is not a model or a bundle that FlatLM can read."""
    file = read_content(path)
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        content = memoryview(mapped)[file.offset : file.offset + file.size]
        try:
            model = schema.Model.GetRootAsModel(content, 0)
            names = [BUILTIN_NAMES[model.OperatorCodes(i).BuiltinCode()] for i in range(model.OperatorCodesLength())]
            signatures = tuple(_signature(model, index, names) for index in range(model.SignatureDefsLength()))
            return Inspection(path, path.stat().st_size, signatures, _weights(model), manifest_of(model))
        finally:
            del model
            content.release()


def read_manifest(path: Path) -> Mapping[str, Any]:
    """FlatLM's manifest of a file; empty where another tool wrote it."""
    return read_content(path).manifest


def _signature(model: Any, index: int, names: list[str]) -> SignatureSummary:
    entry = model.SignatureDefs(index)
    graph = model.Subgraphs(entry.SubgraphIndex())
    count = Counter(names[graph.Operators(i).OpcodeIndex()] for i in range(graph.OperatorsLength()))

    def tensors(length: int, item: Any) -> dict[str, str]:
        return {item(i).Name().decode(): _describe(graph.Tensors(item(i).TensorIndex())) for i in range(length)}

    inputs, outputs = tensors(entry.InputsLength(), entry.Inputs), tensors(entry.OutputsLength(), entry.Outputs)
    return SignatureSummary(entry.SignatureKey().decode(), inputs, outputs, dict(count.most_common()))


def _describe(tensor: Any) -> str:
    shape = ",".join(str(tensor.Shape(i)) for i in range(tensor.ShapeLength()))
    return f"{_TYPE_NAMES[tensor.Type()]}[{shape}]"


def _weights(model: Any) -> dict[str, tuple[int, int]]:
    """Tensors that lie outside the flatbuffer's root, each buffer once, by how they are stored."""
    seen: dict[int, tuple[str, int]] = {}
    for graph_index in range(model.SubgraphsLength()):
        graph = model.Subgraphs(graph_index)
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            size = model.Buffers(tensor.Buffer()).Size()
            if size:
                seen.setdefault(tensor.Buffer(), (describe_scheme(tensor), size))
    out: dict[str, tuple[int, int]] = {}
    for scheme, size in seen.values():
        count, total = out.get(scheme, (0, 0))
        out[scheme] = (count + 1, total + size)
    return out


def describe_scheme(tensor: Any) -> str:
    """How a stored tensor is encoded, such as `int8 per channel`."""
    name, quantization = _TYPE_NAMES[tensor.Type()], tensor.Quantization()
    if quantization is not None and quantization.DetailsType() == schema.QuantizationDetails.BlockwiseQuantization:
        details = schema.BlockwiseQuantization()
        details.Init(quantization.Details().Bytes, quantization.Details().Pos)
        return f"{name} in blocks of {details.BlockSize()}"
    if quantization is not None and quantization.ScaleLength() > 1:
        return f"{name} per channel"
    return f"{name} (block scales)" if tensor.Name().endswith(b"/scales") else name
