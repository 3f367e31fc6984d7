"""What an author's `load_weights` is written with: one parameter filled from one tensor, or all by a table of stacked parameters."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn


def default_weight_loader(param: nn.Parameter, loaded_weight: Tensor) -> None:
    """Copy a tensor of the parameter's shape. Raises ValueError for another shape."""
    if param.shape != loaded_weight.shape:
        raise ValueError(f"the parameter must be {list(param.shape)}, not {list(loaded_weight.shape)}")
    param.data.copy_(loaded_weight)


def load_weight(param: nn.Parameter, loaded_weight: Tensor, **kwargs: Any) -> None:
    """By the parameter's own hook, `param.weight_loader(param, loaded_weight, **kwargs)`, where it has one; else a plain copy.

    `shard_id=` says to the hooks of merged linears which rows are meant: 'q', 'k', 'v', or 0, 1, ...
    """
    hook = getattr(param, "weight_loader", None)
    if hook is not None:
        hook(param, loaded_weight, **kwargs)
    elif kwargs:
        raise ValueError(f"the parameter is not merged of several: {', '.join(kwargs)} cannot be heeded")
    else:
        default_weight_loader(param, loaded_weight)


def load_stacked(
    module: nn.Module, weights: Iterable[tuple[str, Tensor]], stacked: Sequence[tuple[str, str, Any]] = (), skip: Sequence[str] = ()
) -> None:
    """Fill a module's parameters by their names.

    `stacked`: rows (part of a parameter's name, what stands there in the checkpoint, shard id), such as (".qkv_proj", ".q_proj", "q").
    `skip`: parts of the names of tensors that are left out.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, loaded_weight in weights:
        if any(part in name for part in skip):
            continue
        for own, theirs, shard in stacked:
            if theirs in name:
                load_weight(parameters[name.replace(theirs, own)], loaded_weight, shard_id=shard)
                break
        else:
            load_weight(parameters[name], loaded_weight)


def packed_table(packed: Mapping[str, Sequence[str]]) -> list[tuple[str, str, Any]]:
    """The table of `load_stacked` that a class's `packed_modules_mapping` means, such as {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}."""
    table: list[tuple[str, str, Any]] = []
    for own, parts in packed.items():
        shards = ("q", "k", "v") if "qkv" in own and len(parts) == 3 else range(len(parts))
        table += [(f".{own}", f".{part}", shard) for part, shard in zip(parts, shards, strict=True)]
    return table
