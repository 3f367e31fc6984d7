"""Self-attention with grouped queries, and the arithmetic of attention over whatever a cache holds."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from flatlm.layers.config import AttentionConfig, NormSpan
from flatlm.layers.kv_cache import Cache, Placement, Uncached
from flatlm.layers.linear import Linear
from flatlm.layers.mask import per_group
from flatlm.layers.norm import Norm
from flatlm.layers.rope import rotate


class StepContext(NamedTuple):
    """What a layer is told about a step: computed once for all layers of its kind."""

    rope: tuple[Tensor, Tensor] | None
    """Cosines and signed sines [T, 1, H] at the tokens' positions."""
    mask: Tensor
    """[T, S]; [N, T, S], as with ALiBi; or [B, 1 or N, T, S], as of texts with paddings of their own. Additive."""
    place: Placement | None
    """None where nothing is kept: with `Uncached`."""


class Attention(nn.Module):
    """x [B, T, D] -> [B, T, D]. Queries, keys and values come from one merged projection whose rows are [q | k | v]."""

    def __init__(self, dim: int, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        heads, kv_heads, width = config.num_query_heads, config.num_kv_heads, config.head_dim
        self.qkv = Linear(dim, (heads + 2 * kv_heads) * width, bias=config.qkv_bias)
        if config.qk_norm is not None and config.qk_norm.span is NormSpan.HEAD:
            self.query_key_norm = Norm(config.qk_norm.norm, heads + kv_heads, width)
        elif config.qk_norm is not None:
            self.query_norm = Norm(config.qk_norm.norm, heads * width)
            self.key_norm = Norm(config.qk_norm.norm, kv_heads * width)
        self.output = Linear(heads * width, dim, bias=config.output_bias)

    def forward(self, x: Tensor, context: StepContext, cache: Cache | Uncached) -> tuple[Tensor, Cache]:
        config = self.config
        heads, kv_heads, width = config.num_query_heads, config.num_kv_heads, config.head_dim
        batch, tokens, _ = x.shape
        merged = self.qkv(x)
        qkv = merged.reshape(batch, tokens, heads + 2 * kv_heads, width)
        qk, v = self._normalised(merged, qkv[:, :, : heads + kv_heads]), qkv[:, :, heads + kv_heads :]
        if config.clip is not None:
            qk, v = qk.clamp(-config.clip, config.clip), v.clamp(-config.clip, config.clip)
        if context.rope is not None:
            qk = rotate(qk, *context.rope)  # queries and keys in one go
        q, k = qk[:, :, :heads], qk[:, :, heads:]
        if isinstance(cache, Uncached):
            cache = cache.hold(k, v)
        else:
            assert context.place is not None
            cache = cache.update(k, v, context.place)
        return self.output(attention(q, cache, context.mask, config)), cache

    def _normalised(self, merged: Tensor, qk: Tensor) -> Tensor:
        """Queries and keys [B, T, N + K, H] after their norm, if they have one."""
        config = self.config
        if config.qk_norm is None:
            return qk
        if config.qk_norm.span is NormSpan.HEAD:
            return self.query_key_norm(qk)  # type: ignore[no-any-return]
        queries, keys = config.num_query_heads * config.head_dim, config.num_kv_heads * config.head_dim
        normalised = [self.query_norm(merged[..., :queries]), self.key_norm(merged[..., queries : queries + keys])]
        return torch.cat(normalised, -1).reshape(qk.shape)


def attention(q: Tensor, cache: Cache, mask: Tensor, config: AttentionConfig) -> Tensor:
    """What queries q [B, T, N, H] take from the keys and values in the cache: [B, T, N * H].

    softmax(q k^T * scale + mask) v (Vaswani et al. 2017, equation 1); `mask` as a StepContext has it.
    """
    batch, tokens, heads, width = q.shape
    # A group's queries share their keys: fold them into rows, [B, K, group * T, H].
    kv_heads, group, length = config.num_kv_heads, heads // config.num_kv_heads, cache.k.shape[2]
    scale = width**-0.5 if config.scale is None else config.scale
    q = (q * scale).reshape(batch, tokens, kv_heads, group, width).permute(0, 2, 3, 1, 4)
    scores = cache.scores(q.reshape(batch, kv_heads, group * tokens, width), tokens=tokens)
    if config.softcap is not None:
        scores = torch.tanh(scores * (1 / config.softcap)) * config.softcap
    scores = scores.reshape(batch, kv_heads, group, tokens, length) + per_group(mask, config)
    weights = torch.softmax(scores, -1).reshape(batch, kv_heads, group * tokens, length)
    out = cache.mixed(weights, tokens=tokens).reshape(batch, kv_heads, group, tokens, width)
    return out.permute(0, 3, 1, 2, 4).reshape(batch, tokens, heads * width)
