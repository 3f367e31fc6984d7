"""A sparse mixture of experts in the place of a feed-forward (Shazeer et al. 2017; Fedus et al. 2022)."""

import torch
from torch import Tensor, nn

from flatlm.layers import ops
from flatlm.layers.config import MixtureConfig
from flatlm.layers.feed_forward import FeedForward
from flatlm.layers.linear import Linear


class Mixture(nn.Module):
    """x [B, T, D] -> [B, T, D]: the router's choice of experts for each token, weighted and added up."""

    def __init__(self, dim: int, config: MixtureConfig) -> None:
        super().__init__()
        self.config = config
        self.router = Linear(dim, config.num_experts)
        self.experts = nn.ModuleList(FeedForward(dim, config.expert) for _ in range(config.num_experts))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            out = out + weights[..., index : index + 1] * expert(x)
        return out

    def weights(self, x: Tensor) -> Tensor:
        """What each expert counts for each token, [B, T, E]: zero for those not chosen. Equally good experts are chosen together."""
        shares = torch.softmax(self.router(x), -1)
        best = ops.top_k(shares, self.config.experts_per_token)
        chosen = torch.where(shares >= best[..., -1:], shares, 0.0)
        return chosen / best.sum(-1, keepdim=True) if self.config.renormalize else chosen
