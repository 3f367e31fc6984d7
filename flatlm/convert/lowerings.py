"""How litert-torch lowers the layers' own operators: to calls that carry a weight's name, which the linker replaces.

Importing this module registers the lowerings with litert-torch (0.10: `litert_torch.backend.lowerings.lower`), once.
"""

from typing import Any

import torch
from litert_converter.mlir import ir
from litert_converter.mlir.dialects import stablehlo
from litert_torch.backend import lowerings

from flatlm.convert import calls
from flatlm.layers import ops


def _call(target: str, shape: list[int], operands: list[ir.Value], config: str = "", *, element: ir.Type | None = None) -> ir.Value:
    """`element`: the type of the result's numbers (None: float32)."""
    call = stablehlo.CustomCallOp(
        [ir.RankedTensorType.get(shape, element or ir.F32Type.get())],
        operands,
        call_target_name=ir.StringAttr.get(target),
        backend_config=ir.StringAttr.get(config),
        has_side_effect=ir.BoolAttr.get(False),
        api_version=ir.IntegerAttr.get(ir.IntegerType.get_signless(32), 1),
    )
    return call.results[0]


def _shape(value: ir.Value) -> list[int]:
    return list(ir.RankedTensorType(value.type).shape)


def _element(value: ir.Value) -> ir.Type:
    return ir.RankedTensorType(value.type).element_type


@lowerings.lower(torch.ops.flatlm.linear)  # type: ignore[untyped-decorator]
def _linear(context: Any, x: ir.Value, weight: str, bias: str, out_features: int) -> ir.Value:
    return _call(calls.LINEAR, [*_shape(x)[:-1], out_features], [x], f"{weight}{calls.SEPARATOR}{bias}")


@lowerings.lower(torch.ops.flatlm.embedding)  # type: ignore[untyped-decorator]
def _embedding(context: Any, ids: ir.Value, weight: str, dim: int) -> ir.Value:
    return _call(calls.EMBEDDING, [*_shape(ids), dim], [ids], weight)


@lowerings.lower(torch.ops.flatlm.parameter)  # type: ignore[untyped-decorator]
def _parameter(context: Any, like: ir.Value, name: str, shape: list[int]) -> ir.Value:
    return _call(calls.PARAMETER, list(shape), [like], name)


@lowerings.lower(torch.ops.flatlm.matmul_transposed)  # type: ignore[untyped-decorator]
def _matmul_transposed(context: Any, a: ir.Value, b: ir.Value) -> ir.Value:
    return _call(calls.MATMUL_TRANSPOSED, [*_shape(a)[:-1], _shape(b)[-2]], [a, b], element=_element(a))


@lowerings.lower(torch.ops.flatlm.take)  # type: ignore[untyped-decorator]
def _take(context: Any, table: ir.Value, ids: ir.Value, dim: int) -> ir.Value:
    shape = _shape(table)
    return _call(calls.TAKE, [*shape[:dim], *_shape(ids), *shape[dim + 1 :]], [table, ids], str(dim))


@lowerings.lower(torch.ops.flatlm.splice)  # type: ignore[untyped-decorator]
def _splice(context: Any, old: ir.Value, new: ir.Value, ids: ir.Value, dim: int) -> ir.Value:
    shape = _shape(old)
    return _call(calls.SPLICE, [*shape[:dim], *_shape(ids), *shape[dim + 1 :]], [old, new, ids], str(dim), element=_element(old))


@lowerings.lower(torch.ops.flatlm.quantize)  # type: ignore[untyped-decorator]
def _quantize(context: Any, x: ir.Value, unit: float) -> ir.Value:
    return _call(calls.QUANTIZE, _shape(x), [x], str(unit), element=ir.IntegerType.get_signless(8))


@lowerings.lower(torch.ops.flatlm.dequantize)  # type: ignore[untyped-decorator]
def _dequantize(context: Any, x: ir.Value, unit: float) -> ir.Value:
    return _call(calls.DEQUANTIZE, _shape(x), [x], str(unit), element=ir.F16Type.get())


@lowerings.lower(torch.ops.flatlm.top_k)  # type: ignore[untyped-decorator]
def _top_k(context: Any, x: ir.Value, k: int) -> ir.Value:
    return _call(calls.TOP_K, [*_shape(x)[:-1], k], [x], str(k))


@lowerings.lower(torch.ops.flatlm.update_slice)  # type: ignore[untyped-decorator]
def _update_slice(context: Any, cache: ir.Value, update: ir.Value, starts: ir.Value) -> ir.Value:
    if ops.is_calling():
        return _call(calls.UPDATE_SLICE, _shape(cache), [cache, update, starts], element=_element(cache))
    scalar = ir.RankedTensorType.get([], ir.RankedTensorType(starts.type).element_type)
    each = [stablehlo.reshape(scalar, stablehlo.slice(starts, [i], [i + 1], [1])) for i in range(len(_shape(cache)))]
    return stablehlo.dynamic_update_slice(cache, update, each)
