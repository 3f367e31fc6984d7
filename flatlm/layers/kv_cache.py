"""The KV cache, functional: a step takes the caches in and gives them back out, one pair for each layer."""

from typing import NamedTuple

import torch
from torch import Tensor

from flatlm.layers import ops
from flatlm.layers.config import AttentionConfig, ModelConfig


class KVCache(NamedTuple):
    """One layer's cache: keys [B, K, S, H]; values transposed, [B, K, H, S], so that both products with them read along rows."""

    k: Tensor
    v: Tensor

    @classmethod
    def zeros(cls, config: AttentionConfig, *, batch: int, length: int, device: torch.device | str | None = None) -> "KVCache":
        heads, width = config.num_kv_heads, config.head_dim
        return cls(torch.zeros(batch, heads, length, width, device=device), torch.zeros(batch, heads, width, length, device=device))

    def update(self, k: Tensor, v: Tensor, slots: "CacheSlots") -> "KVCache":
        """With keys and values [B, T, K, H] written at T consecutive slots."""
        return KVCache(ops.update_slice(self.k, k.permute(0, 2, 1, 3), slots.k), ops.update_slice(self.v, v.permute(0, 2, 3, 1), slots.v))


class CacheSlots(NamedTuple):
    """Where a step's keys and values begin: the starts [4] int32 of their slices in the caches."""

    k: Tensor
    v: Tensor

    @classmethod
    def at(cls, input_pos: Tensor) -> "CacheSlots":
        """From the tokens' consecutive positions [T] int32."""
        first = input_pos[:1].to(torch.int32)
        zeros = torch.zeros(3, dtype=torch.int32, device=input_pos.device)
        return cls(torch.cat([zeros[:2], first, zeros[:1]]), torch.cat([zeros, first]))


def empty_caches(config: ModelConfig, *, length: int, batch: int = 1, device: torch.device | str | None = None) -> list[KVCache]:
    """Zeroed caches for every layer of the model."""
    return [KVCache.zeros(block.attention, batch=batch, length=length, device=device) for block in config.blocks]
