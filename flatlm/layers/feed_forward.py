"""Gated and plain feed-forward."""

import torch.nn.functional as F  # the field's own name for it
from torch import Tensor, nn

from flatlm.layers.config import Activation, FeedForwardConfig
from flatlm.layers.linear import Linear


def activate(x: Tensor, activation: Activation) -> Tensor:
    match activation:
        case Activation.SILU:
            return F.silu(x)
        case Activation.GELU:
            return F.gelu(x)
        case Activation.GELU_TANH:
            return F.gelu(x, approximate="tanh")
        case Activation.RELU:
            return F.relu(x)
        case Activation.TANH:
            return F.tanh(x)


class FeedForward(nn.Module):
    """x [B, T, D] -> [B, T, D]. A gated one has one merged projection whose rows are [gate | up]."""

    def __init__(self, dim: int, config: FeedForwardConfig) -> None:
        super().__init__()
        self.config = config
        if config.gated:
            self.gate_up = Linear(dim, 2 * config.hidden_dim, bias=config.bias)
        else:
            self.up = Linear(dim, config.hidden_dim, bias=config.bias)
        self.down = Linear(config.hidden_dim, dim, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        if not self.config.gated:
            return self.down(activate(self.up(x), self.config.activation))  # type: ignore[no-any-return]
        merged, width = self.gate_up(x), self.config.hidden_dim
        return self.down(activate(merged[..., :width], self.config.activation) * merged[..., width:])  # type: ignore[no-any-return]
