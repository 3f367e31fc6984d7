"""Norms over the last dimension."""

import torch
from torch import Tensor, nn

from flatlm.layers import ops
from flatlm.layers.config import NormConfig, NormKind


class Norm(ops.Named):
    """x [..., D] normalised as `config` says, times weight, plus bias where there are such. Computed in float32.

    Weight and bias are [D], or of any shape that x's last dimensions have, such as [heads, H] for a norm of heads.
    """

    def __init__(self, config: NormConfig, *shape: int) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(shape)) if config.weight else None
        self.bias = nn.Parameter(torch.empty(shape)) if config.bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.config.kind is NormKind.LAYER:
            x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config.eps)
        x = x if self.weight is None else x * self._get(x, "weight", self.weight)
        return x if self.bias is None else x + self._get(x, "bias", self.bias)

    def _get(self, x: Tensor, name: str, value: Tensor) -> Tensor:
        return ops.parameter(x, f"{self.path}.{name}", list(value.shape)) if ops.is_exporting() else value


def norm_or_none(config: NormConfig | None, *shape: int) -> Norm | None:
    """The norm, or None where the configuration has none."""
    return None if config is None else Norm(config, *shape)
