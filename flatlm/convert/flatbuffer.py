"""TFLite flatbuffers as objects: parse, pack, operator codes, buffers. The schema is ai-edge-litert's."""

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

IDENTIFIER = b"TFL3"
BUILTIN_NAMES: dict[int, str] = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}


def parse(content: bytes) -> Any:
    """The model as a tree of the schema's `...T` objects."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))


def pack(model: Any) -> bytearray:
    """The model as one flatbuffer, mutable, so that values which are known only later are written in place."""
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytearray(builder.Output())


def opcode_index(model: Any, builtin: int, version: int) -> int:
    """The index of a built-in operator's code in the model, added where it is missing; its version becomes at least `version`."""
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == builtin:
            code.version = max(code.version, version)
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = builtin
    code.deprecatedBuiltinCode = min(builtin, 127)
    code.version = version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def drop_unused_codes(model: Any) -> None:
    """Remove operator codes that no operator uses: a runtime refuses a file that lists one it does not know."""
    used = sorted({op.opcodeIndex for graph in model.subgraphs for op in graph.operators})
    position = {old: new for new, old in enumerate(used)}
    model.operatorCodes = [model.operatorCodes[index] for index in used]
    for graph in model.subgraphs:
        for op in graph.operators:
            op.opcodeIndex = position[op.opcodeIndex]


def add_buffer(model: Any, data: bytes | None = None) -> int:
    """A new buffer's index; without data it is to lie outside the flatbuffer."""
    buffer = schema.BufferT()
    if data is not None:
        buffer.data = np.frombuffer(data, np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def new_tensor(name: str, shape: tuple[int, ...], dtype: int, buffer: int = 0) -> Any:
    tensor = schema.TensorT()
    tensor.name = name.encode()
    tensor.shape = np.array(shape, np.int32)
    tensor.hasRank = True
    tensor.type = dtype
    tensor.buffer = buffer
    return tensor


def is_constant(model: Any, tensor: Any) -> bool:
    """Has it data of its own in the flatbuffer?"""
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def share_equal_buffers(model: Any) -> None:
    """Let tensors whose constant data are equal point at one buffer, and drop the buffers that nothing uses."""
    first: dict[bytes, int] = {}
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    for tensor in tensors:
        if is_constant(model, tensor):
            tensor.buffer = first.setdefault(bytes(model.buffers[tensor.buffer].data), tensor.buffer)
        elif not model.buffers[tensor.buffer].size:
            tensor.buffer = 0  # by convention the empty one
    used = sorted({0} | {tensor.buffer for tensor in tensors} | {entry.buffer for entry in model.metadata or []})
    position = {old: new for new, old in enumerate(used)}
    model.buffers = [model.buffers[index] for index in used]
    for holder in [*tensors, *(model.metadata or [])]:
        holder.buffer = position[holder.buffer]


class SharedQuantization(schema.QuantizationParametersT):  # type: ignore[misc]
    """Quantization parameters that several tensors of a model point at: packed once a flatbuffer, however many scales they hold."""

    _packed: tuple[Any, int] | None = None

    def Pack(self, builder: Any) -> int:  # noqa: N802 - the schema's name
        if self._packed is None or self._packed[0] is not builder:
            self._packed = (builder, super().Pack(builder))
        return self._packed[1]
