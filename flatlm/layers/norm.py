"""Norms over the last dimension."""

import torch
from torch import Tensor, nn

from flatlm.layers import ops
from flatlm.layers.config import NormConfig, NormKind


class Norm(ops.Named):
    """x [..., D] normalised as `config` says, times weight [D], plus bias [D] where there is one. Computed in float32."""

    def __init__(self, dim: int, config: NormConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim)) if config.bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.config.kind is NormKind.LAYER:
            x = x - x.mean(-1, keepdim=True)
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config.eps)
        x = x * self._get(x, "weight", self.weight)
        return x if self.bias is None else x + self._get(x, "bias", self.bias)

    def _get(self, x: Tensor, name: str, value: Tensor) -> Tensor:
        return ops.parameter(x, f"{self.path}.{name}", list(value.shape)) if ops.is_exporting() else value
