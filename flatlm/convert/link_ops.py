"""Every named call of a stamped model becomes the runtime's built-in operator, with the weight's tensor beside it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from flatlm.convert import calls, flatbuffer
from flatlm.convert.weights import PlacedWeight, WeightLayout
from flatlm.errors import ExportError, RecipeError
from flatlm.quantize.activations import Affine
from flatlm.quantize.schemes import Scheme

Operator = schema.BuiltinOperator

_STORAGE = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "int8": schema.TensorType.INT8,
    "int4": schema.TensorType.INT4,
}
# Versions of built-in operators that read what we give them (tflite's op_version.cc).
_FULLY_CONNECTED = (Operator.FULLY_CONNECTED, 12)
_EMBEDDING_LOOKUP = (Operator.EMBEDDING_LOOKUP, 4)
_BATCH_MATMUL = (Operator.BATCH_MATMUL, 1)
_UPDATE_SLICE = (Operator.DYNAMIC_UPDATE_SLICE, 1)
_DEQUANTIZE = (Operator.DEQUANTIZE, 5)
_GATHER = (Operator.GATHER, 1)
_TOP_K = (Operator.TOPK_V2, 1)
_QUANTIZE = (Operator.QUANTIZE, 1)
_INT8_GATHER = (Operator.GATHER, 2)
_CONCATENATION = (Operator.CONCATENATION, 2)


@dataclass
class LinkedWeight:
    """A placed weight, and what stands for it in the model: its buffer, and its block scales' buffer or its scales per channel.

    `bias`: the buffer of a bias of integers, with the scales per channel that belong to it.
    """

    placed: PlacedWeight
    data: int
    scales: int | None = None
    quantization: flatbuffer.SharedQuantization | None = None
    bias: tuple[int, flatbuffer.SharedQuantization] | None = None

    @property
    def scheme(self) -> Scheme:
        return self.placed.scheme

    @property
    def shape(self) -> tuple[int, ...]:
        return self.placed.source.shape


class Linker:
    """Rewrites a stamped model in place. Each weight has one buffer for all signatures and uses.

    `external` lists the buffers that lie outside the root, with their offsets in the layout.
    """

    def __init__(self, model: Any, layout: WeightLayout) -> None:
        self.model = model
        self.external: list[tuple[int, int]] = []
        self._layout = layout
        self._weights: dict[str, LinkedWeight] = {}
        rewrites: dict[str, Callable[[_GraphLinker, Any, str], None]] = {
            calls.LINEAR: _GraphLinker.linear,
            calls.EMBEDDING: _GraphLinker.embedding,
            calls.PARAMETER: _GraphLinker.parameter,
            calls.MATMUL_TRANSPOSED: _GraphLinker.matmul_transposed,
            calls.UPDATE_SLICE: _GraphLinker.update_slice,
            calls.TAKE: _GraphLinker.take,
            calls.TOP_K: _GraphLinker.top_k,
            calls.SPLICE: _GraphLinker.splice,
            calls.QUANTIZE: _GraphLinker.quantize,
            calls.DEQUANTIZE: _GraphLinker.dequantize,
        }
        for graph in model.subgraphs:
            _GraphLinker(self, graph).rewrite(rewrites)
        flatbuffer.drop_unused_codes(model)

    def weight(self, name: str) -> LinkedWeight:
        if name not in self._weights:
            if name not in self._layout.weights:
                raise ExportError(f"the model has a weight {name} that no checkpoint tensor was planned for")
            placed = self._layout.weights[name]
            weight = LinkedWeight(placed, self._external(placed.data_size, placed.data_offset))
            if placed.scales_offset is not None:
                weight.scales = self._external(placed.block_scales_size, placed.scales_offset)
            elif placed.channel_scales is not None:
                weight.quantization = _per_channel(placed.channel_scales)
            if placed.bias is not None:
                weight.bias = self._external(placed.bias.size, placed.bias.offset), _per_channel(placed.bias.source.shape)
            self._weights[name] = weight
        return self._weights[name]

    def _external(self, size: int, offset: int) -> int:
        index = flatbuffer.add_buffer(self.model)
        self.model.buffers[index].size = size
        self.model.buffers[index].offset = 1  # set in the packed root; zero would not be written there
        self.external.append((index, offset))
        return index


class _GraphLinker:
    """One subgraph's rewriting. Weight tensors are made once a graph, operators in their place."""

    def __init__(self, linker: Linker, graph: Any) -> None:
        self.linker = linker
        self.graph = graph
        self.operators: list[Any] = []
        self._stored: dict[str, int] = {}
        self._floats: dict[str, int] = {}

    def rewrite(self, rewrites: Mapping[str, Callable[["_GraphLinker", Any, str], None]]) -> None:
        codes = self.linker.model.operatorCodes
        calls, self.graph.operators = self.graph.operators, []
        for op in calls:
            if codes[op.opcodeIndex].builtinCode != Operator.STABLEHLO_CUSTOM_CALL:
                self.operators.append(op)
                continue
            call = op.builtinOptions2
            target, config = call.callTargetName.decode(), (call.backendConfig or b"").decode()
            op.builtinOptions2, op.builtinOptions2Type = None, schema.BuiltinOptions2.NONE
            rewrites[target](self, op, config)
        self.graph.operators = self.operators

    def linear(self, op: Any, config: str) -> None:
        weight, bias = config.split(calls.SEPARATOR)
        if self.linker.weight(weight).scheme.compute == "static":
            self._static_linear(op, weight)
            return
        self._fully_connected(op, [op.inputs[0], self._operand(weight), self._stored_tensor(bias) if bias else -1])

    def _static_linear(self, op: Any, name: str) -> None:
        """Integers in, integers out, by the ranges that are known of the weight's linear: QUANTIZE, FULLY_CONNECTED, DEQUANTIZE."""
        weight = self.linker.weight(name)
        ranges = weight.placed.ranges
        assert ranges is not None
        source, target = int(op.inputs[0]), int(op.outputs[0])
        read = self._quantized_like(source, f"{name}/input", ranges.input.affine())
        gave = self._quantized_like(target, f"{name}/output", ranges.output.affine())
        quantize = schema.OperatorT()
        quantize.outputs = np.array([read], np.int32)
        self._emit(quantize, _QUANTIZE, [source], schema.BuiltinOptions.QuantizeOptions, schema.QuantizeOptionsT())
        op.outputs = np.array([gave], np.int32)
        self._fully_connected(op, [read, self._stored_tensor(name), self._integer_bias(weight)])
        self._dequantize(gave, target)

    def _quantized_like(self, tensor: int, name: str, affine: Affine) -> int:
        """A new tensor of a tensor's shape, int8 by one scale and zero point."""
        index = self._new_tensor(name, tuple(map(int, self.graph.tensors[tensor].shape)), schema.TensorType.INT8)
        self.graph.tensors[index].quantization = _affine(affine.scale, affine.zero_point)
        return index

    def _integer_bias(self, weight: LinkedWeight) -> int:
        """The bias's tensor, int32 [rows]; -1 where there is none."""
        if weight.bias is None or weight.placed.bias is None:
            return -1
        name = weight.placed.bias.name
        if name not in self._stored:
            self._stored[name] = self._new_tensor(name, weight.placed.bias.source.shape, schema.TensorType.INT32, weight.bias[0])
            self.graph.tensors[self._stored[name]].quantization = weight.bias[1]
        return self._stored[name]

    def _fully_connected(self, op: Any, inputs: list[int]) -> None:
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        self._emit(op, _FULLY_CONNECTED, inputs, schema.BuiltinOptions.FullyConnectedOptions, options)

    def embedding(self, op: Any, config: str) -> None:
        scheme = self.linker.weight(config).scheme
        if scheme.storage == "float16":  # EMBEDDING_LOOKUP has no float16: fetch the rows, then widen them
            shape = tuple(int(size) for size in self.graph.tensors[op.outputs[0]].shape)
            rows = self._new_tensor(f"{config}/rows", shape, schema.TensorType.FLOAT16)
            out, op.outputs = op.outputs, np.array([rows], np.int32)
            options = schema.GatherOptionsT()
            self._emit(op, _GATHER, [self._stored_tensor(config), op.inputs[0]], schema.BuiltinOptions.GatherOptions, options)
            self._dequantize(rows, int(out[0]))
            return
        self._emit(op, _EMBEDDING_LOOKUP, [op.inputs[0], self._stored_tensor(config)])

    def parameter(self, op: Any, config: str) -> None:
        """Its values, float32: the buffer itself, or what DEQUANTIZE makes of it, where an author's own arithmetic reads a matrix."""
        tensor = self.graph.tensors[op.outputs[0]]
        weight = self.linker.weight(config)
        if weight.scheme.block_size is not None:
            raise RecipeError(
                f"{config} is read neither by a linear nor as a table, and {weight.scheme.name} is for those: name it in a recipe of your "
                "own, with float32 or dynamic_int8"
            )
        if weight.scheme.storage != "float32":
            self._dequantize(self._stored_tensor(config), int(op.outputs[0]))
            return
        tensor.buffer = weight.data
        tensor.name = config.encode()

    def matmul_transposed(self, op: Any, config: str) -> None:
        options = schema.BatchMatMulOptionsT()
        options.adjY = True
        self._emit(op, _BATCH_MATMUL, op.inputs, schema.BuiltinOptions.BatchMatMulOptions, options)

    def update_slice(self, op: Any, config: str) -> None:
        self._share_quantization(int(op.inputs[1]), int(op.inputs[0]), int(op.outputs[0]))
        options = schema.DynamicUpdateSliceOptionsT()
        self._emit(op, _UPDATE_SLICE, op.inputs, schema.BuiltinOptions.DynamicUpdateSliceOptions, options)

    def take(self, op: Any, config: str) -> None:
        options = schema.GatherOptionsT()
        options.axis = int(config)
        self._emit(op, _GATHER, op.inputs, schema.BuiltinOptions.GatherOptions, options)

    def splice(self, op: Any, config: str) -> None:
        old, new, ids = (int(index) for index in op.inputs)
        tensors, axis = self.graph.tensors, int(config)
        shape = [int(size) for size in tensors[old].shape]
        shape[axis] += int(tensors[new].shape[axis])
        both = self._new_tensor(f"{tensors[old].name.decode()}/spliced", tuple(shape), tensors[old].type)
        self._share_quantization(new, old, both, int(op.outputs[0]))
        join, joined = schema.OperatorT(), schema.ConcatenationOptionsT()
        joined.axis, join.outputs = axis, np.array([both], np.int32)
        self._emit(join, _CONCATENATION, [old, new], schema.BuiltinOptions.ConcatenationOptions, joined)
        gathered = schema.GatherOptionsT()
        gathered.axis = axis
        self._emit(op, _INT8_GATHER, [both, ids], schema.BuiltinOptions.GatherOptions, gathered)

    def quantize(self, op: Any, config: str) -> None:
        self.graph.tensors[op.outputs[0]].quantization = _affine(float(config), 0)
        self._emit(op, _QUANTIZE, op.inputs, schema.BuiltinOptions.QuantizeOptions, schema.QuantizeOptionsT())

    def dequantize(self, op: Any, config: str) -> None:
        self.graph.tensors[op.inputs[0]].quantization = _affine(float(config), 0)
        self._emit(op, _DEQUANTIZE, op.inputs, schema.BuiltinOptions.DequantizeOptions, schema.DequantizeOptionsT())

    def _share_quantization(self, source: int, *others: int) -> None:
        """What a cache's new entries count in, its old ones do: the runtime does not rescale between them."""
        tensors = self.graph.tensors
        if tensors[source].type == schema.TensorType.INT8:
            for index in others:
                tensors[index].quantization = tensors[source].quantization

    def top_k(self, op: Any, config: str) -> None:
        values = self.graph.tensors[op.outputs[0]]
        indices = self._new_tensor(f"{values.name.decode()}/indices", tuple(map(int, values.shape)), schema.TensorType.INT32)
        buffer = flatbuffer.add_buffer(self.linker.model, np.array([int(config)], np.int32).tobytes())
        count = self._new_tensor(f"{values.name.decode()}/k", (), schema.TensorType.INT32, buffer)
        op.outputs = np.array([op.outputs[0], indices], np.int32)
        self._emit(op, _TOP_K, [op.inputs[0], count], schema.BuiltinOptions.TopKV2Options, schema.TopKV2OptionsT())

    def _operand(self, name: str) -> int:
        """The tensor that a product reads: the stored one, or its float32 values where the scheme computes in float."""
        scheme = self.linker.weight(name).scheme
        if scheme.compute == "dynamic" or scheme.storage == "float32":
            return self._stored_tensor(name)
        if name not in self._floats:
            self._floats[name] = self._new_tensor(f"{name}/float32", self.linker.weight(name).shape, schema.TensorType.FLOAT32)
            self._dequantize(self._stored_tensor(name), self._floats[name])
        return self._floats[name]

    def _stored_tensor(self, name: str) -> int:
        if name in self._stored:
            return self._stored[name]
        weight = self.linker.weight(name)
        index = self._new_tensor(name, weight.shape, _STORAGE[weight.scheme.storage], weight.data)
        tensor = self.graph.tensors[index]
        if weight.scales is not None:
            scales = weight.scheme.scales_shape(weight.shape)
            assert scales is not None and weight.scheme.block_size is not None
            details = schema.BlockwiseQuantizationT()
            details.scales = self._new_tensor(f"{name}/scales", scales, schema.TensorType.FLOAT16, weight.scales)
            details.zeroPoints = -1
            details.blockSize = weight.scheme.block_size
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
            tensor.quantization.details = details
        elif weight.quantization is not None:
            tensor.quantization = weight.quantization
        self._stored[name] = index
        return index

    def _new_tensor(self, name: str, shape: tuple[int, ...], dtype: int, buffer: int = 0) -> int:
        self.graph.tensors.append(flatbuffer.new_tensor(name, shape, dtype, buffer))
        return len(self.graph.tensors) - 1

    def _dequantize(self, source: int, target: int) -> None:
        op = schema.OperatorT()
        op.outputs = np.array([target], np.int32)
        self._emit(op, _DEQUANTIZE, [source], schema.BuiltinOptions.DequantizeOptions, schema.DequantizeOptionsT())

    def _emit(self, op: Any, code: tuple[int, int], inputs: Any, kind: int = 0, options: Any = None) -> None:
        op.opcodeIndex = flatbuffer.opcode_index(self.linker.model, *code)
        op.inputs = np.array(inputs, np.int32)
        op.builtinOptionsType, op.builtinOptions = kind, options
        self.operators.append(op)


def _affine(scale: float, zero_point: int) -> Any:
    quantization = schema.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = np.array([scale], np.float32), np.array([zero_point], np.int64)
    return quantization


def _per_channel(rows: tuple[int, ...]) -> flatbuffer.SharedQuantization:
    """Scales per channel, to be filled in once the file is packed; zero points of 0."""
    quantization = flatbuffer.SharedQuantization()
    quantization.scale, quantization.zeroPoint = np.ones(rows, np.float32), np.zeros(rows, np.int64)
    quantization.quantizedDimension = 0
    return quantization
