"""The KV cache, functional: a step takes the caches in and gives them back out, one pair for each layer.

A layer that sees only a window of W tokens keeps a ring: position p lies in slot p mod R. Tokens are written before they attend, so a
step of T tokens overwrites positions up to T - R after its first: R >= W + T - 1 keeps all that any of them may see. What a padded step
wrote behind its last token is hidden by the mask until it is overwritten: the same bound.

Caches smaller than float32 are read in two ways, each what the runtime does well. A step of one token, whose time is that of reading
the cache, multiplies in float16. A longer one widens the cache to float32 first.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from flatlm.layers import ops
from flatlm.layers.config import AttentionConfig, CacheDtype, ModelConfig

RING_MULTIPLE = 16
"""Rings are rounded up to this many slots, so that rows of scores are whole vectors."""
KEY_UNIT = 2.0**-7
VALUE_UNIT = 2.0**-13
"""What int8 entries count, before their scale: powers of 2, so that float16 holds all counts exactly. The values' is so small that scales,
and with them the attention's weights times a scale, are large: float16 has few digits for what is below 1e-4."""
SMALLEST_SCALE = 2.0**-60
"""In the place of 0, where all of a head's entries are."""


class CacheGeometry(NamedTuple):
    """How many tokens the caches are for (`length`), and the most tokens of one step (None: any, so that every layer keeps them all)."""

    length: int
    longest_step: int | None = None
    dtype: CacheDtype = CacheDtype.FLOAT32
    context: int | None = None
    """The most tokens of a text, where it may move on to longer caches."""

    @property
    def positions(self) -> int:
        """How many positions a text may have: what tables of positions are made for, the same in all caches of a file."""
        return self.length if self.context is None else self.context

    def slots(self, config: AttentionConfig) -> int:
        """S of the layer's own cache: the whole length, or a ring where the layer's window allows a shorter one."""
        if config.mask.window is None or self.longest_step is None:
            return self.length
        ring = config.mask.window + self.longest_step - 1
        return min(self.length, ring + -ring % RING_MULTIPLE)

    def bytes(self, config: AttentionConfig) -> int:
        """What the layer's cache takes, for one text."""
        scale = CacheDtype.FLOAT32.bytes if self.dtype is CacheDtype.INT8 else 0
        return 2 * self.slots(config) * config.num_kv_heads * (config.head_dim * self.dtype.bytes + scale)


class KVCache(NamedTuple):
    """One layer's cache: keys [B, K, S, H]; values transposed, [B, K, H, S], so that both products with them read along rows.

    float32 or float16.
    """

    k: Tensor
    v: Tensor

    @classmethod
    def zeros(
        cls,
        config: AttentionConfig,
        *,
        batch: int,
        slots: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> "KVCache":
        k, v = (torch.zeros(shape, dtype=dtype, device=device) for shape in _shapes(config, batch, slots))
        return cls(k, v)

    def update(self, k: Tensor, v: Tensor, place: "Placement") -> "KVCache":
        """With keys and values [B, T, K, H] of T consecutive tokens in their slots."""
        k, v = k.permute(0, 2, 1, 3), v.permute(0, 2, 3, 1)
        if self.k.dtype == torch.float16:
            return KVCache(*_written(self.k, k.half(), self.v, v.half(), place))
        match place:
            case CacheSlots():
                return KVCache(ops.update_slice(self.k, k, place.k), ops.update_slice(self.v, v, place.v))
            case RingSlots(source):
                return KVCache(ops.take(torch.cat([self.k, k], 2), source, 2), ops.take(torch.cat([self.v, v], 3), source, 3))

    def scores(self, q: Tensor, *, tokens: int) -> Tensor:
        """Of queries [B, K, R, H], of a step of so many tokens, with all keys: [B, K, R, S]."""
        return _product(q, self.k, tokens)

    def mixed(self, weights: Tensor, *, tokens: int) -> Tensor:
        """The values by weights [B, K, R, S]: [B, K, R, H]."""
        return _product(weights, self.v, tokens)


class QuantizedCache(NamedTuple):
    """One layer's cache in int8, each token and head by itself: key = scale * count * KEY_UNIT, value = scale * count * VALUE_UNIT.

    The largest count of a token and head is 127, or all are 0. The scales [B, K, 1, S], float32, lie as rows of scores do.
    """

    k: Tensor
    v: Tensor
    k_scale: Tensor
    v_scale: Tensor

    @classmethod
    def zeros(cls, config: AttentionConfig, *, batch: int, slots: int, device: torch.device | str | None = None) -> "QuantizedCache":
        k, v = (torch.zeros(shape, dtype=torch.int8, device=device) for shape in _shapes(config, batch, slots))
        k_scale, v_scale = (torch.zeros(batch, config.num_kv_heads, 1, slots, device=device) for _ in range(2))
        return cls(k, v, k_scale, v_scale)

    def update(self, k: Tensor, v: Tensor, place: "Placement") -> "QuantizedCache":
        """With keys and values [B, T, K, H] of T consecutive tokens in their slots."""
        k, v = k.permute(0, 2, 1, 3), v.permute(0, 2, 3, 1)
        k_scale, v_scale = _scale(k, 3, KEY_UNIT), _scale(v, 2, VALUE_UNIT)
        counts = ops.quantize(k / k_scale, KEY_UNIT), ops.quantize(v / v_scale, VALUE_UNIT)
        k_scale = k_scale.reshape(v_scale.shape)  # from [B, K, T, 1]
        match place:
            case CacheSlots():
                scales = ops.update_slice(self.k_scale, k_scale, place.v), ops.update_slice(self.v_scale, v_scale, place.v)
            case RingSlots(source):
                scales = ops.splice(self.k_scale, k_scale, source, 3), ops.splice(self.v_scale, v_scale, source, 3)
        return QuantizedCache(*_written(self.k, counts[0], self.v, counts[1], place), *scales)

    def scores(self, q: Tensor, *, tokens: int) -> Tensor:
        """Of queries [B, K, R, H], of a step of so many tokens, with all keys: [B, K, R, S]."""
        if tokens == 1:
            return _product(q, ops.dequantize(self.k, KEY_UNIT), tokens) * self.k_scale
        return ops.matmul_transposed(q * KEY_UNIT, self.k.to(q.dtype)) * self.k_scale

    def mixed(self, weights: Tensor, *, tokens: int) -> Tensor:
        """The values by weights [B, K, R, S]: [B, K, R, H]."""
        if tokens == 1:
            return _product(weights * self.v_scale, ops.dequantize(self.v, VALUE_UNIT), tokens)
        return ops.matmul_transposed(weights * (self.v_scale * VALUE_UNIT), self.v.to(weights.dtype))


Cache = KVCache | QuantizedCache


class Uncached(NamedTuple):
    """In the place of a cache, where tokens see those of their own step and nothing is kept, as in an encoder."""

    def hold(self, k: Tensor, v: Tensor) -> KVCache:
        """The step's own keys and values [B, T, K, H], as a cache of T slots."""
        return KVCache(k.permute(0, 2, 1, 3), v.permute(0, 2, 3, 1))


def cache_names(cache: Cache, layer: int | str) -> tuple[str, ...]:
    """What a signature calls the layer's tensors, in their order: kv_cache_k_0, kv_cache_v_0, kv_cache_k_0_scale, ..."""
    return tuple(f"kv_cache_{name[0]}_{layer}{name[1:]}" for name in cache._fields)


def _shapes(config: AttentionConfig, batch: int, slots: int) -> Iterator[tuple[int, ...]]:
    """Of keys, and of values."""
    yield batch, config.num_kv_heads, slots, config.head_dim
    yield batch, config.num_kv_heads, config.head_dim, slots


def _scale(x: Tensor, dim: int, unit: float) -> Tensor:
    """By which the largest along `dim` is 127 units."""
    return (x.abs().amax(dim, keepdim=True) * (1 / (127 * unit))).clamp(min=SMALLEST_SCALE)


def _written(k: Tensor, new_k: Tensor, v: Tensor, new_v: Tensor, place: "Placement") -> tuple[Tensor, Tensor]:
    """Keys and values, not float32, with new ones in their slots."""
    match place:
        case CacheSlots():
            return ops.update_slice(k, new_k, place.k), ops.update_slice(v, new_v, place.v)
        case RingSlots(source):
            return ops.splice(k, new_k, source, 2), ops.splice(v, new_v, source, 3)


def _product(a: Tensor, b: Tensor, tokens: int) -> Tensor:
    """Take a [B, K, R, C] times b [B, K, P, C] transposed, [B, K, R, P], in what suits the step's length; in the dtype of a."""
    if tokens == 1 and b.dtype == torch.float16:
        return ops.matmul_transposed(a.half(), b).to(a.dtype)
    return ops.matmul_transposed(a, b if b.dtype == a.dtype else b.to(a.dtype))


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


def empty_cache(config: AttentionConfig, geometry: CacheGeometry, *, batch: int = 1, device: torch.device | str | None = None) -> Cache:
    """A layer's, zeroed."""
    slots = geometry.slots(config)
    if geometry.dtype is CacheDtype.INT8:
        return QuantizedCache.zeros(config, batch=batch, slots=slots, device=device)
    dtype = torch.float16 if geometry.dtype is CacheDtype.FLOAT16 else torch.float32
    return KVCache.zeros(config, batch=batch, slots=slots, dtype=dtype, device=device)


def empty_caches(config: ModelConfig, geometry: CacheGeometry, *, batch: int = 1, device: torch.device | str | None = None) -> list[Cache]:
    """Zeroed caches for every layer of the model."""
    return [empty_cache(block.attention, geometry, batch=batch, device=device) for block in config.blocks]
