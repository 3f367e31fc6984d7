"""The operators that a re-authored model is made of while it is exported: calls that carry a weight's name, and no weight.

Outside `exporting()` the layers are ordinary torch. Inside it, a layer's weight never becomes a constant of the graph: the
operators below survive `torch.export`, and `flatlm.convert` lowers them and puts the real weights in.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_EXPORTING: ContextVar[bool] = ContextVar("flatlm_exporting", default=False)
_CALLING: ContextVar[bool] = ContextVar("flatlm_calling", default=False)


@contextmanager
def exporting() -> Iterator[None]:
    """Within it, layers emit weight-free calls in place of reading their parameters."""
    token = _EXPORTING.set(True)
    try:
        yield
    finally:
        _EXPORTING.reset(token)


def is_exporting() -> bool:
    return _EXPORTING.get()


@contextmanager
def calling() -> Iterator[None]:
    """Within it, operators without weights become calls, which the linker replaces; layers read their parameters as ever."""
    token = _CALLING.set(True)
    try:
        yield
    finally:
        _CALLING.reset(token)


def is_calling() -> bool:
    """Whether operators without weights are calls: within `exporting()` too."""
    return _CALLING.get() or _EXPORTING.get()


class Named(nn.Module):
    """A layer with parameters of its own, which knows its path in the whole model: the name its weights are exported under."""

    path: str = ""


def name_layers(module: nn.Module, prefix: str = "") -> None:
    """Give every `Named` layer in `module` its path below `prefix`; `{}` in a prefix stands for the layer's index."""
    for name, layer in module.named_modules():
        if isinstance(layer, Named):
            layer.path = ".".join(part for part in (prefix, name) if part)


@torch.library.custom_op("flatlm::linear", mutates_args=())
def linear(x: Tensor, weight: str, bias: str, out_features: int) -> Tensor:
    """Take x [..., in] times the named weight [out, in], plus the named bias [out] unless its name is empty. Only for tracing."""
    return x.new_zeros((*x.shape[:-1], out_features))


@linear.register_fake
def _(x: Tensor, weight: str, bias: str, out_features: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


@torch.library.custom_op("flatlm::embedding", mutates_args=())
def embedding(ids: Tensor, weight: str, dim: int) -> Tensor:
    """Rows of the named table [V, dim] for ids [n] int32: [n, dim] float32. Only for tracing."""
    return torch.zeros((*ids.shape, dim), device=ids.device)


@embedding.register_fake
def _(ids: Tensor, weight: str, dim: int) -> Tensor:
    return torch.empty((*ids.shape, dim), device=ids.device)


@torch.library.custom_op("flatlm::parameter", mutates_args=())
def parameter(like: Tensor, name: str, shape: Sequence[int]) -> Tensor:
    """The named float32 parameter. `like` only keeps the call from being folded into a constant. Only for tracing."""
    return like.new_zeros(shape)


@parameter.register_fake
def _(like: Tensor, name: str, shape: Sequence[int]) -> Tensor:
    return like.new_empty(shape)


@torch.library.custom_op("flatlm::update_slice", mutates_args=())
def update_slice(cache: Tensor, update: Tensor, starts: Tensor) -> Tensor:
    """`cache` with `update` written at `starts` [rank] int32: the runtime's DYNAMIC_UPDATE_SLICE, which clamps the starts to fit."""
    out = cache.clone()
    window = out
    for dim, start in enumerate(starts.tolist()):
        size = update.shape[dim]
        window = window.narrow(dim, min(max(start, 0), cache.shape[dim] - size), size)
    window.copy_(update)
    return out


@update_slice.register_fake
def _(cache: Tensor, update: Tensor, starts: Tensor) -> Tensor:
    return torch.empty_like(cache)


@torch.library.custom_op("flatlm::matmul_transposed", mutates_args=())
def _matmul_transposed(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b.transpose(-1, -2))


@_matmul_transposed.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty((*a.shape[:-1], b.shape[-2]))


def matmul_transposed(a: Tensor, b: Tensor) -> Tensor:
    """Take a [..., M, C] times b [..., P, C] transposed: [..., M, P]. Exported as one BATCH_MATMUL, which reads b as it lies.

    Both float32, or both float16; that is summed in float32 here, and in the runtime as its processor does it.
    """
    if a.dtype == torch.float16 and not is_calling():
        wide = a.to(torch.float32), b.to(torch.float32).transpose(-1, -2)
        return torch.matmul(*wide).to(torch.float16)
    return _matmul_transposed(a, b) if is_calling() else torch.matmul(a, b.transpose(-1, -2))


@torch.library.custom_op("flatlm::take", mutates_args=())
def _take(table: Tensor, ids: Tensor, dim: int) -> Tensor:
    return table.index_select(dim, ids)


@_take.register_fake
def _(table: Tensor, ids: Tensor, dim: int) -> Tensor:
    return table.new_empty((*table.shape[:dim], *ids.shape, *table.shape[dim + 1 :]))


def take(table: Tensor, ids: Tensor, dim: int) -> Tensor:
    """Entries of `table` along `dim` for ids [n] int32: that dimension becomes n. Exported as one GATHER."""
    return _take(table, ids, dim) if is_calling() else table.index_select(dim, ids)


@torch.library.custom_op("flatlm::splice", mutates_args=())
def splice(old: Tensor, new: Tensor, ids: Tensor, dim: int) -> Tensor:
    """Entries of [old | new] along `dim` for ids [n] int32, in the dtype of `old`. Exported as CONCATENATION and GATHER."""
    return torch.cat([old, new.to(old.dtype)], dim).index_select(dim, ids)


@splice.register_fake
def _(old: Tensor, new: Tensor, ids: Tensor, dim: int) -> Tensor:
    return old.new_empty((*old.shape[:dim], *ids.shape, *old.shape[dim + 1 :]))


@torch.library.custom_op("flatlm::quantize", mutates_args=())
def quantize(x: Tensor, unit: float) -> Tensor:
    """How many units x is, int8: rounded half to even, clamped. Exported as one QUANTIZE, whose scale is the unit."""
    return torch.round(x / unit).clamp(-128, 127).to(torch.int8)


@quantize.register_fake
def _(x: Tensor, unit: float) -> Tensor:
    return torch.empty_like(x, dtype=torch.int8)


@torch.library.custom_op("flatlm::dequantize", mutates_args=())
def dequantize(x: Tensor, unit: float) -> Tensor:
    """So many units, float16, of x int8. Exported as one DEQUANTIZE of a tensor whose scale is the unit."""
    return x.to(torch.float16) * unit


@dequantize.register_fake
def _(x: Tensor, unit: float) -> Tensor:
    return torch.empty_like(x, dtype=torch.float16)


@torch.library.custom_op("flatlm::top_k", mutates_args=())
def _top_k(x: Tensor, k: int) -> Tensor:
    return torch.topk(x, k, -1).values.clone()


@_top_k.register_fake
def _(x: Tensor, k: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], k))


def top_k(x: Tensor, k: int) -> Tensor:
    """The k largest of x [..., n], from the largest: [..., k]. Exported as one TOPK_V2."""
    return _top_k(x, k) if is_calling() else torch.topk(x, k, -1).values
