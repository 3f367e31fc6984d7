"""Causal self-attention with grouped queries over a KV cache."""

import torch
from torch import Tensor, nn

from flatlm.layers import ops
from flatlm.layers.config import AttentionConfig
from flatlm.layers.kv_cache import CacheSlots, KVCache
from flatlm.layers.linear import Linear
from flatlm.layers.rope import rotate


class Attention(nn.Module):
    """x [B, T, D] -> [B, T, D]. Queries, keys and values come from one merged projection whose rows are [q | k | v]."""

    def __init__(self, dim: int, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        heads, kv_heads, width = config.num_query_heads, config.num_kv_heads, config.head_dim
        self.qkv = Linear(dim, (heads + 2 * kv_heads) * width, bias=config.qkv_bias)
        self.output = Linear(heads * width, dim, bias=config.output_bias)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, slots: CacheSlots, cache: KVCache) -> tuple[Tensor, KVCache]:
        """Rope tables [T, 1, H] at the tokens' positions, mask [T, S]; `slots` says where in the cache the tokens go."""
        heads, kv_heads, width = self.config.num_query_heads, self.config.num_kv_heads, self.config.head_dim
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, heads + 2 * kv_heads, width)
        turned = rotate(qkv[:, :, : heads + kv_heads], *rope)  # queries and keys in one go
        q, k, v = turned[:, :, :heads], turned[:, :, heads:], qkv[:, :, heads + kv_heads :]
        cache = cache.update(k, v, slots)

        # A group's queries share their keys: fold them into rows, [B, K, group * T, H].
        group, length = heads // kv_heads, cache.k.shape[2]
        q = (q * width**-0.5).reshape(batch, tokens, kv_heads, group, width).permute(0, 2, 3, 1, 4)
        scores = ops.matmul_transposed(q.reshape(batch, kv_heads, group * tokens, width), cache.k)
        scores = scores.reshape(batch, kv_heads, group, tokens, length) + mask
        weights = torch.softmax(scores, -1).reshape(batch, kv_heads, group * tokens, length)
        out = ops.matmul_transposed(weights, cache.v).reshape(batch, kv_heads, group, tokens, width)
        return self.output(out.permute(0, 3, 1, 2, 4).reshape(batch, tokens, heads * width)), cache
