"""The decoder block."""

from torch import Tensor, nn

from flatlm.layers.attention import Attention
from flatlm.layers.config import BlockConfig
from flatlm.layers.feed_forward import FeedForward
from flatlm.layers.kv_cache import CacheSlots, KVCache
from flatlm.layers.norm import Norm


class Block(nn.Module):
    """x [B, T, D] -> [B, T, D]: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, dim: int, config: BlockConfig) -> None:
        super().__init__()
        self.attention_norm = Norm(dim, config.attention_norm)
        self.attention = Attention(dim, config.attention)
        self.feed_forward_norm = Norm(dim, config.feed_forward_norm)
        self.feed_forward = FeedForward(dim, config.feed_forward)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, slots: CacheSlots, cache: KVCache) -> tuple[Tensor, KVCache]:
        attended, cache = self.attention(self.attention_norm(x), rope, mask, slots, cache)
        x = x + attended
        return x + self.feed_forward(self.feed_forward_norm(x)), cache
