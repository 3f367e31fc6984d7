"""What the runtime makes of the encoded bytes: one-operator files, run with the CPU delegate and without, against `decode`."""

import flatbuffers
import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from flatlm.quantize.encode import Encoded, decode, encode
from flatlm.quantize.schemes import SCHEMES, Scheme

ROWS, COLUMNS = 16, 256
RESOLVERS = {"delegate": OpResolverType.AUTO, "plain": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}


class OneOperator:
    """A flatbuffer of one subgraph with one operator."""

    def __init__(self) -> None:
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.buffers = [schema.BufferT()]
        self.graph = schema.SubGraphT()
        self.graph.name, self.graph.tensors = "main", []
        self.model.subgraphs = [self.graph]

    def tensor(self, name: str, shape: tuple[int, ...], kind: int, data: np.ndarray | None = None) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.hasRank, tensor.buffer = name, np.array(shape, np.int32), kind, True, 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def weight(self, encoded: Encoded, scheme: Scheme) -> int:
        kind = {"float32": schema.TensorType.FLOAT32, "int8": schema.TensorType.INT8, "int4": schema.TensorType.INT4}[scheme.storage]
        weight = self.tensor("weight", (ROWS, COLUMNS), kind, encoded.data)
        if encoded.scales is not None:
            quantization = schema.QuantizationParametersT()
            quantization.quantizedDimension = 0
            if scheme.block_size is None:
                quantization.scale, quantization.zeroPoint = encoded.scales, np.zeros(ROWS, np.int64)
            else:
                blockwise = schema.BlockwiseQuantizationT()
                blockwise.scales = self.tensor("scales", encoded.scales.shape, schema.TensorType.FLOAT16, encoded.scales)
                blockwise.zeroPoints, blockwise.blockSize = -1, scheme.block_size
                quantization.detailsType, quantization.details = schema.QuantizationDetails.BlockwiseQuantization, blockwise
            self.graph.tensors[weight].quantization = quantization
        return weight

    def finish(self, code: int, version: int, inputs: list[int], output: int) -> bytes:
        operator_code, operator = schema.OperatorCodeT(), schema.OperatorT()
        operator_code.builtinCode = operator_code.deprecatedBuiltinCode = code
        operator_code.version = version
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        if code == schema.BuiltinOperator.FULLY_CONNECTED:
            operator.builtinOptionsType, operator.builtinOptions = (
                schema.BuiltinOptions.FullyConnectedOptions,
                schema.FullyConnectedOptionsT(),
            )
        self.model.operatorCodes, self.graph.operators = [operator_code], [operator]
        self.graph.inputs, self.graph.outputs = np.array(inputs[:1], np.int32), np.array([output], np.int32)
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def run(file: bytes, value: np.ndarray, resolver: str) -> np.ndarray:
    interpreter = Interpreter(model_content=file, num_threads=1, experimental_op_resolver_type=RESOLVERS[resolver])
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], value)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).copy()


def weight() -> torch.Tensor:
    """Rows from 1e-6 to 1, one of zeros, one with a block of zeros."""
    rows = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 0, ROWS)[:, None]
    rows[3] = 0
    rows[4, 32:64] = 0
    return rows


@pytest.mark.parametrize("resolver", RESOLVERS)
@pytest.mark.parametrize("scheme", [s for s in SCHEMES.values() if s.storage != "float16"], ids=lambda scheme: scheme.name)
def test_embedding_lookup_gives_the_decoded_rows(scheme: Scheme, resolver: str) -> None:
    encoded = encode(weight(), scheme)
    file = OneOperator()
    ids = file.tensor("ids", (ROWS,), schema.TensorType.INT32)
    table = file.weight(encoded, scheme)
    output = file.tensor("output", (ROWS, COLUMNS), schema.TensorType.FLOAT32)
    content = file.finish(schema.BuiltinOperator.EMBEDDING_LOOKUP, 4, [ids, table], output)
    looked_up = run(content, np.arange(ROWS, dtype=np.int32), resolver)
    np.testing.assert_array_equal(looked_up, decode(encoded, scheme, (ROWS, COLUMNS)).numpy())


@pytest.mark.parametrize("resolver", RESOLVERS)
@pytest.mark.parametrize("scheme", [s for s in SCHEMES.values() if s.storage != "float16"], ids=lambda scheme: scheme.name)
def test_fully_connected_multiplies_by_the_decoded_weight(scheme: Scheme, resolver: str) -> None:
    """Of one-hot inputs, which int8 holds without an error: the output is the weight, column by column."""
    encoded = encode(weight(), scheme)
    file = OneOperator()
    x = file.tensor("x", (COLUMNS, COLUMNS), schema.TensorType.FLOAT32)
    table = file.weight(encoded, scheme)
    output = file.tensor("output", (COLUMNS, ROWS), schema.TensorType.FLOAT32)
    content = file.finish(schema.BuiltinOperator.FULLY_CONNECTED, 12, [x, table, -1], output)
    multiplied = run(content, np.eye(COLUMNS, dtype=np.float32), resolver).T
    np.testing.assert_allclose(multiplied, decode(encoded, scheme, (ROWS, COLUMNS)).numpy(), rtol=1e-6, atol=0)
