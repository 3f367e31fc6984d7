"""Attention of a decoder's tokens to an encoder's output, whose keys and values are computed once for a text."""

from torch import Tensor, nn

from flatlm.layers.attention import StepContext, attention
from flatlm.layers.block import Block
from flatlm.layers.config import AttentionConfig, BlockConfig, NormConfig
from flatlm.layers.kv_cache import Cache, KVCache
from flatlm.layers.linear import Linear
from flatlm.layers.norm import Norm


class CrossAttention(nn.Module):
    """x [B, T, D] and the encoder's keys and values -> [B, T, D]. `key_value` has merged rows [k | v], and is only used by `hold`."""

    def __init__(self, dim: int, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        heads, kv_heads, width = config.num_query_heads, config.num_kv_heads, config.head_dim
        self.query = Linear(dim, heads * width, bias=config.qkv_bias)
        self.key_value = Linear(dim, 2 * kv_heads * width, bias=config.qkv_bias)
        self.output = Linear(heads * width, dim, bias=config.output_bias)

    def hold(self, encoded: Tensor) -> KVCache:
        """The keys [B, K, S_e, H] and values [B, K, H, S_e] of an encoder's output [B, S_e, D]."""
        batch, slots, _ = encoded.shape
        merged = self.key_value(encoded).reshape(batch, slots, 2, self.config.num_kv_heads, self.config.head_dim)
        return KVCache(merged[:, :, 0].permute(0, 2, 1, 3), merged[:, :, 1].permute(0, 2, 3, 1))

    def forward(self, x: Tensor, cross: KVCache, mask: Tensor) -> Tensor:
        """`mask` [B, 1, 1, S_e], additive: which of the encoder's slots hold a token."""
        q = self.query(x).reshape(*x.shape[:2], self.config.num_query_heads, self.config.head_dim)
        return self.output(attention(q, cross, mask, self.config))  # type: ignore[no-any-return]


class CrossBranch(nn.Module):
    """A decoder block's look at the encoder: attention and its norm."""

    def __init__(self, dim: int, attention: AttentionConfig, norm: NormConfig) -> None:
        super().__init__()
        self.attention_norm = Norm(norm, dim)
        self.attention = CrossAttention(dim, attention)

    def forward(self, x: Tensor, cross: KVCache, mask: Tensor, *, norm_after: bool) -> Tensor:
        """X + attention(norm(x)), or norm(x + attention(x))."""
        if norm_after:
            return self.attention_norm(x + self.attention(x, cross, mask))  # type: ignore[no-any-return]
        return x + self.attention(self.attention_norm(x), cross, mask)  # type: ignore[no-any-return]


class CrossBlock(Block):
    """A `Block` that looks at the encoder's output between its self-attention and its feed-forward."""

    def __init__(self, dim: int, config: BlockConfig, cross: AttentionConfig, norm: NormConfig) -> None:
        """`config`: without a mixture, and its branches one after the other."""
        super().__init__(dim, config)
        self.cross = CrossBranch(dim, cross, norm)

    def decode(self, x: Tensor, context: StepContext, cache: Cache, cross: tuple[KVCache, Tensor]) -> tuple[Tensor, Cache]:
        """X [B, T, D] and the updated cache of the step's own tokens. `cross`: the encoder's keys and values, and their mask."""
        x, _, cache = self.attend(x, context, cache)
        x = self.cross(x, *cross, norm_after=self.config.norm_after)
        read = x if self.config.norm_after or self.feed_forward_norm is None else self.feed_forward_norm(x)
        return self.add(x, self.feed_forward(read)), cache
