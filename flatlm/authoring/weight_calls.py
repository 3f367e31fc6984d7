"""Named calls in place of parameters, for modules written as anyone writes torch.

While an author's forward is traced, its parameters are on the meta device. Every torch function that is given one is seen here first: a
product becomes `flatlm::linear`, a look-up `flatlm::embedding`, and wherever else a parameter is read `flatlm::parameter` stands for it.
So `nn.Linear`, `nn.Embedding`, norms and bare `nn.Parameter`s all do, and no weight becomes a constant of the graph.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # the field's own name for it
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from flatlm.errors import ConfigError
from flatlm.layers import ops

_COPIES = frozenset({"data", "T", "mT", "H", "mH", "real"})
"""Attributes of a tensor that are tensors."""
_FACTS = frozenset({"size", "dim", "ndimension", "numel", "nelement", "stride", "element_size", "is_floating_point", "is_contiguous"})
"""Methods of a tensor that tell its form and not its values."""


@dataclass
class Uses:
    """How parameters are read: by name, in the order of their first use."""

    tables: dict[str, int] = field(default_factory=dict)
    """Looked up, with the number of rows that were asked for."""
    linears: dict[str, str | None] = field(default_factory=dict)
    """Multiplied by, with the bias's name. The last one is the last that was called."""
    others: dict[str, None] = field(default_factory=dict)


class WeightCalls(TorchFunctionMode):
    """Within it, reading a parameter of `names` (by identity) is a call. `like`: any float tensor of the graph."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], like: Tensor, names: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.uses = Uses()
        self._kept = [parameter for _, parameter in parameters]  # an id means something while its object lives
        self._names = {id(parameter): (names or {}).get(name, name) for name, parameter in parameters}
        self._like = like

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(self._name(leaf) for leaf in tree_leaves((args, kwargs))):
            out = func(*args, **kwargs)
            if isinstance(out, Tensor) and out.dtype == torch.float32 and out.device.type != "meta":
                self._like = out
            return out
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self._attribute(func, args)
        if name in _FACTS:
            return func(*args, **kwargs)
        if func is F.linear:
            return self._linear(*args, **kwargs)
        if func is F.embedding:
            return self._embedding(*args, **kwargs)
        if func is F.rms_norm:
            return self._rms_norm(*args, **kwargs)
        if func is F.layer_norm:
            return self._layer_norm(*args, **kwargs)
        if name.endswith("_") and not name.endswith("__") and self._name(args[0]):
            raise ConfigError(
                f"forward changes the parameter {self._name(args[0])} in place ({name}): an exported file's weights are fixed"
            )
        return func(*tree_map(self._stand_in, args), **tree_map(self._stand_in, kwargs))

    def _name(self, value: Any) -> str:
        return self._names.get(id(value), "") if isinstance(value, Tensor) else ""

    def _attribute(self, func: Any, args: tuple[Any, ...]) -> Any:
        attribute = getattr(func.__self__, "__name__", "")
        if attribute == "device":
            return torch.device("cpu")
        return func(self._stand_in(args[0])) if attribute in _COPIES else func(*args)

    def _stand_in(self, value: Any) -> Any:
        name = self._name(value)
        if not name:
            return value
        self.uses.others[name] = None
        return ops.parameter(self._like, name, list(value.shape))

    # The arguments have torch's names, since they may be given by them.
    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002
        name = self._name(weight)
        if not name or weight.dim() != 2 or input.dtype != torch.float32:
            return F.linear(input, self._stand_in(weight), self._stand_in(bias))
        own = self._name(bias)
        self.uses.linears.pop(name, None)
        self.uses.linears[name] = own or None
        out: Tensor = ops.linear(input, name, own, weight.shape[0])
        return out if bias is None or own else out + bias

    def _embedding(
        self,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        **_: Any,
    ) -> Tensor:
        name = self._name(weight)
        if not name or max_norm is not None:
            raise ConfigError(
                f"embedding of {name or 'a computed table'} with max_norm={max_norm}: look up rows of a parameter, as they are"
            )
        self.uses.tables.setdefault(name, input.numel())
        rows: Tensor = ops.embedding(input.reshape(-1).to(torch.int32), name, weight.shape[1])
        return rows.reshape(*input.shape, weight.shape[1])

    def _rms_norm(
        self,
        input: Tensor,  # noqa: A002
        normalized_shape: Any,
        weight: Tensor | None = None,
        eps: float | None = None,
    ) -> Tensor:
        over = tuple(range(-len(normalized_shape), 0))
        eps = torch.finfo(input.dtype).eps if eps is None else eps
        normed = input * torch.rsqrt(input.pow(2).mean(over, keepdim=True) + eps)
        return normed if weight is None else normed * self._near(weight, input)

    def _layer_norm(
        self,
        input: Tensor,  # noqa: A002
        normalized_shape: Any,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        over = tuple(range(-len(normalized_shape), 0))
        centred = input - input.mean(over, keepdim=True)
        normed = self._rms_norm(centred, normalized_shape, weight, eps)
        return normed if bias is None else normed + self._near(bias, input)

    def _near(self, value: Tensor, like: Tensor) -> Any:
        self._like = like
        return self._stand_in(value)
