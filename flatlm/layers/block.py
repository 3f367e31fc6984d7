"""The block that decoders and encoders are made of."""

from torch import Tensor, nn

from flatlm.layers.attention import Attention, StepContext
from flatlm.layers.config import BlockConfig, FeedForwardConfig, MixtureConfig
from flatlm.layers.feed_forward import FeedForward
from flatlm.layers.kv_cache import Cache, Uncached
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

    def forward(self, x: Tensor, context: StepContext, cache: Cache | Uncached) -> tuple[Tensor, Cache]:
        x, read, held = self.attend(x, context, cache)
        return self.add(x, self.feed_forward(read)), held

    def attend(self, x: Tensor, context: StepContext, cache: Cache | Uncached) -> tuple[Tensor, Tensor, Cache]:
        """After attention: x with it added, what the feed-forward reads, and the cache."""
        before, after = (None, self.attention_norm) if self.config.norm_after else (self.attention_norm, None)
        normed = _apply(before, x)
        attended, held = self.attention(normed, context, cache)
        attended = self._scaled(_apply(self.attention_post_norm, attended))
        if self.config.parallel:
            read = normed if self.feed_forward_norm is None else self.feed_forward_norm(x)
            return x + attended, read, held
        x = _apply(after, x + attended)
        return x, x if self.config.norm_after else _apply(self.feed_forward_norm, x), held

    def add(self, x: Tensor, fed: Tensor) -> Tensor:
        """With what the feed-forward gave added."""
        x = x + self._scaled(_apply(self.feed_forward_post_norm, fed))
        return _apply(self.feed_forward_norm, x) if self.config.norm_after else x

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.config.residual_scale == 1.0 else x * self.config.residual_scale


def _feed_forward(dim: int, config: FeedForwardConfig | MixtureConfig) -> nn.Module:
    return Mixture(dim, config) if isinstance(config, MixtureConfig) else FeedForward(dim, config)


def _apply(norm: nn.Module | None, x: Tensor) -> Tensor:
    return x if norm is None else norm(x)
