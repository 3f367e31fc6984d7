"""The decoder block."""

from torch import Tensor, nn

from flatlm.layers.attention import Attention, StepContext
from flatlm.layers.config import BlockConfig, FeedForwardConfig, MixtureConfig
from flatlm.layers.feed_forward import FeedForward
from flatlm.layers.kv_cache import KVCache
from flatlm.layers.mixture import Mixture
from flatlm.layers.norm import norm_or_none


class Block(nn.Module):
    """x [B, T, D] -> [B, T, D]: attention and feed-forward, each added to x, as the configuration arranges norms and branches."""

    def __init__(self, dim: int, config: BlockConfig) -> None:
        super().__init__()
        self.config = config
        self.attention_norm = norm_or_none(config.attention_norm, dim)
        self.attention = Attention(dim, config.attention)
        self.attention_post_norm = norm_or_none(config.attention_post_norm, dim)
        self.feed_forward_norm = norm_or_none(config.feed_forward_norm, dim)
        self.feed_forward = _feed_forward(dim, config.feed_forward)
        self.feed_forward_post_norm = norm_or_none(config.feed_forward_post_norm, dim)

    def forward(self, x: Tensor, context: StepContext, cache: KVCache) -> tuple[Tensor, KVCache]:
        normed = _apply(self.attention_norm, x)
        attended, cache = self.attention(normed, context, cache)
        attended = self._scaled(_apply(self.attention_post_norm, attended))
        if self.config.parallel:
            read = normed if self.feed_forward_norm is None else self.feed_forward_norm(x)
            return x + attended + self._fed(read), cache
        x = x + attended
        return x + self._fed(_apply(self.feed_forward_norm, x)), cache

    def _fed(self, x: Tensor) -> Tensor:
        return self._scaled(_apply(self.feed_forward_post_norm, self.feed_forward(x)))

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.config.residual_scale == 1.0 else x * self.config.residual_scale


def _feed_forward(dim: int, config: FeedForwardConfig | MixtureConfig) -> nn.Module:
    return Mixture(dim, config) if isinstance(config, MixtureConfig) else FeedForward(dim, config)


def _apply(norm: nn.Module | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)
