"""Linears as lmdeploy's builders make them: one for each projection, merged where several read the same input.

In eager mode they are ordinary torch. While exporting, every product with a parameter becomes a call that carries its name
(`authoring/weight_calls.py`), so that none of them knows of quantization: the recipe of the export says how a weight is stored.
Keywords of lmdeploy that speak of other machines (`quant_config`, `is_tp`, `all_reduce`, `device`, ...) are taken and mean nothing here;
those that nobody knows are a TypeError.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # the field's own name for it
from torch import Tensor, nn

from flatlm.authoring.modules.keywords import refuse_unknown


class Linear(nn.Module):
    """y [..., out] = x [..., in] @ weight [out, in].T + bias [out]."""

    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, *, bias: bool, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=dtype))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype))
        else:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class MergedLinear(Linear):
    """Several linears of one input, their rows one below the other.

    `weight_loader(param, loaded_weight, shard_id)` fills the rows of one of them, by its name in `names` (0, 1, ... unless given);
    a `shard_id` of None fills all, from a tensor that is merged already.
    """

    def __init__(
        self, in_features: int, out_features: Sequence[int], *, names: Sequence[Any], bias: bool, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(in_features, sum(out_features), bias=bias, dtype=dtype)
        if len(names) != len(out_features):
            raise ValueError(f"{len(names)} names for {len(out_features)} outputs: {list(names)}")
        self.all_out_features = list(out_features)
        starts = [sum(out_features[:index]) for index in range(len(out_features))]
        self._rows = {name: (start, count) for name, start, count in zip(names, starts, out_features, strict=True)}
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.weight_loader = self.weight_loader  # type: ignore[attr-defined]
                parameter.weight_spliter = self.weight_spliter  # type: ignore[attr-defined]

    def weight_loader(self, param: nn.Parameter, loaded_weight: Tensor, shard_id: Any = None) -> None:
        """Copy a shard's rows into place. Raises ValueError for an unknown shard or another number of rows."""
        if shard_id is None:
            start, count = 0, self.out_features
        elif shard_id in self._rows:
            start, count = self._rows[shard_id]
        else:
            raise ValueError(f"there is no shard {shard_id!r}; there are {', '.join(map(repr, self._rows))}")
        expected = (count, *param.shape[1:])
        if tuple(loaded_weight.shape) != expected:
            what = "all shards" if shard_id is None else f"shard {shard_id!r}"
            raise ValueError(f"{what} must be {list(expected)}, not {list(loaded_weight.shape)}")
        param.data.narrow(0, start, count).copy_(loaded_weight)

    def weight_spliter(self, loaded_weight: Tensor, layout: str = "default") -> tuple[Tensor, ...]:
        """A merged tensor's shards, in order, from rows that lie one shard below the other."""
        if layout != "default":
            raise ValueError(f"layout {layout!r} is not known here; default is")
        return tuple(torch.split(loaded_weight, self.all_out_features))


class QKVLinear(MergedLinear):
    """Queries, keys and values of one input: rows [q | k | v], shards 'q', 'k' and 'v'."""

    def __init__(self, in_features: int, heads: tuple[int, int], head_size: int, *, bias: bool, dtype: torch.dtype | None = None) -> None:
        self.heads, self.head_size = heads, head_size
        counts = [heads[0], heads[1], heads[1]]
        super().__init__(in_features, [count * head_size for count in counts], names=("q", "k", "v"), bias=bias, dtype=dtype)

    def split_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x [..., (N + 2K) H]: queries [..., N, H], keys and values [..., K, H]."""
        queries, keys = self.heads
        heads = x.reshape(*x.shape[:-1], queries + 2 * keys, self.head_size)
        q, k, v = torch.split(heads, [queries, keys, keys], dim=-2)
        return q, k, v

    def weight_spliter(self, loaded_weight: Tensor, layout: str = "default") -> tuple[Tensor, ...]:
        """q, k and v of a merged tensor: `default`, one below the other; `hgd`, group by group, each its queries, a key and a value."""
        if layout != "hgd":
            return super().weight_spliter(loaded_weight, layout)
        queries, keys = self.heads
        grouped = loaded_weight.reshape(keys, queries // keys + 2, self.head_size, *loaded_weight.shape[1:])
        return tuple(part.flatten(0, 2) for part in (grouped[:, :-2], grouped[:, -2:-1], grouped[:, -1:]))


def build_linear(in_features: int, out_features: int, bias: bool, dtype: torch.dtype | None = None, **keywords: Any) -> Linear:
    """A linear."""
    refuse_unknown(build_linear, keywords)
    return Linear(in_features, out_features, bias=bias, dtype=dtype)


def build_colwise_linear(in_features: int, out_features: int, bias: bool, dtype: torch.dtype | None = None, **keywords: Any) -> Linear:
    """A linear whose outputs lmdeploy would share out among devices; here a linear."""
    refuse_unknown(build_colwise_linear, keywords)
    return Linear(in_features, out_features, bias=bias, dtype=dtype)


def build_rowwise_linear(in_features: int, out_features: int, bias: bool, dtype: torch.dtype | None = None, **keywords: Any) -> Linear:
    """A linear whose inputs lmdeploy would share out among devices; here a linear."""
    refuse_unknown(build_rowwise_linear, keywords)
    return Linear(in_features, out_features, bias=bias, dtype=dtype)


def build_merged_colwise_linear(
    in_features: int,
    all_out_features: Sequence[int],
    bias: bool,
    dtype: torch.dtype | None = None,
    out_names: Sequence[Any] | None = None,
    **keywords: Any,
) -> MergedLinear:
    """Linears of one input as one, such as gate and up. `out_names`: how `load_weight(shard_id=...)` calls them (0, 1, ...)."""
    refuse_unknown(build_merged_colwise_linear, keywords)
    names = range(len(all_out_features)) if out_names is None else out_names
    return MergedLinear(in_features, all_out_features, names=names, bias=bias, dtype=dtype)


def build_qkv_proj(
    in_features: int,
    num_q_heads: int,
    num_kv_heads: int,
    head_size: int,
    head_size_v: int | None = None,
    bias: bool = False,
    dtype: torch.dtype | None = None,
    **keywords: Any,
) -> QKVLinear:
    """The merged projection of attention. Raises ValueError for values of another width than keys."""
    refuse_unknown(build_qkv_proj, keywords, num_replicate_kv_heads=1)
    if head_size_v not in (None, head_size):
        raise ValueError(f"head_size_v = {head_size_v}: values as wide as keys ({head_size}) are supported")
    return QKVLinear(in_features, (num_q_heads, num_kv_heads), head_size, bias=bias, dtype=dtype)
