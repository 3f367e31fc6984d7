"""The KV cache, functional: a step takes the caches in and gives them back out, one pair for each layer.

A layer that sees only a window of W tokens keeps a ring: position p lies in slot p mod R. Tokens are written before they attend, so a
step of T tokens overwrites positions up to T - R after its first: R >= W + T - 1 keeps all that any of them may see. What a padded step
wrote behind its last token is hidden by the mask until it is overwritten: the same bound.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from flatlm.layers import ops
from flatlm.layers.config import AttentionConfig, ModelConfig

RING_MULTIPLE = 16
"""Rings are rounded up to this many slots, so that rows of scores are whole vectors."""


class CacheGeometry(NamedTuple):
    """How many tokens the caches are for (`length`), and the most tokens of one step (None: any, so that every layer keeps them all)."""

    length: int
    longest_step: int | None = None

    def slots(self, config: AttentionConfig) -> int:
        """S of the layer's own cache: the whole length, or a ring where the layer's window allows a shorter one."""
        if config.mask.window is None or self.longest_step is None:
            return self.length
        ring = config.mask.window + self.longest_step - 1
        return min(self.length, ring + -ring % RING_MULTIPLE)


class KVCache(NamedTuple):
    """One layer's cache: keys [B, K, S, H]; values transposed, [B, K, H, S], so that both products with them read along rows."""

    k: Tensor
    v: Tensor

    @classmethod
    def zeros(cls, config: AttentionConfig, *, batch: int, slots: int, device: torch.device | str | None = None) -> "KVCache":
        heads, width = config.num_kv_heads, config.head_dim
        return cls(torch.zeros(batch, heads, slots, width, device=device), torch.zeros(batch, heads, width, slots, device=device))

    def update(self, k: Tensor, v: Tensor, place: "Placement") -> "KVCache":
        """With keys and values [B, T, K, H] of T consecutive tokens in their slots."""
        k, v = k.permute(0, 2, 1, 3), v.permute(0, 2, 3, 1)
        match place:
            case CacheSlots():
                return KVCache(ops.update_slice(self.k, k, place.k), ops.update_slice(self.v, v, place.v))
            case RingSlots(source):
                return KVCache(ops.take(torch.cat([self.k, k], 2), source, 2), ops.take(torch.cat([self.v, v], 3), source, 3))


class CacheSlots(NamedTuple):
    """Where a step's keys and values begin: the starts [4] int32 of their slices in the caches."""

    k: Tensor
    v: Tensor

    @classmethod
    def at(cls, first: Tensor) -> "CacheSlots":
        """Consecutive slots from `first` [1] int32 on."""
        zeros = torch.zeros(3, dtype=torch.int32, device=first.device)
        return cls(torch.cat([zeros[:2], first, zeros[:1]]), torch.cat([zeros, first]))


class RingSlots(NamedTuple):
    """For each slot of a ring, which of [old slots | the step's tokens] it holds afterwards: source [R] int32."""

    source: Tensor


Placement = CacheSlots | RingSlots


def place(input_pos: Tensor, slots: int, length: int) -> Placement:
    """Where the tokens at consecutive positions input_pos [T] int32 go in a cache of so many slots for a context of `length`."""
    first, tokens = input_pos[:1], input_pos.shape[0]
    if slots == length:
        return CacheSlots.at(first)
    if tokens == 1:
        return CacheSlots.at(first % slots)
    own = torch.arange(slots, dtype=torch.int32, device=input_pos.device)
    token = (own - first) % slots  # the token of the step that falls on the slot, if the step is so long
    return RingSlots(torch.where(token < tokens, token + slots, own))


def positions_held(input_pos: Tensor, slots: int, length: int) -> Tensor:
    """The position that each slot holds after the step, [S] int32: in a ring the last that was written there, negative where none was."""
    own = torch.arange(slots, dtype=torch.int32, device=input_pos.device)
    if slots == length:
        return own
    last = input_pos[:1] + (input_pos.shape[0] - 1)  # not input_pos[-1]: what pads a step may have any position
    return last - (last - own) % slots


def empty_caches(
    config: ModelConfig, geometry: CacheGeometry, *, batch: int = 1, device: torch.device | str | None = None
) -> list[KVCache]:
    """Zeroed caches for every layer of the model."""
    return [KVCache.zeros(block.attention, batch=batch, slots=geometry.slots(block.attention), device=device) for block in config.blocks]
