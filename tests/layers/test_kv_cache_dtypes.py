"""Caches smaller than float32, in the eager model: how far an entry is from what was written, and that steps of any length agree."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlm.layers.config import CacheDtype, MaskConfig
from flatlm.layers.kv_cache import KEY_UNIT, VALUE_UNIT, CacheGeometry, CacheSlots, QuantizedCache, cache_names, empty_caches
from tests.models import random_decoder, tiny_config

SMALL = (CacheDtype.FLOAT16, CacheDtype.INT8)
ATTENTION = tiny_config().blocks[0].attention
FLOAT16_STEP = 0.02
"""What a step of one token, whose products are float16, may add to a logit of about 5."""


def written(k: torch.Tensor, v: torch.Tensor, first: int = 0) -> QuantizedCache:
    """Keys and values [1, T, K, H] in an empty cache of 8 slots."""
    empty = QuantizedCache.zeros(ATTENTION, batch=1, slots=8)
    return empty.update(k, v, CacheSlots.at(torch.tensor([first], dtype=torch.int32)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), tokens=st.integers(1, 6), magnitude=st.sampled_from([1e-6, 1.0, 500.0]))
def test_entries_are_within_half_a_count(seed: int, tokens: int, magnitude: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    k, v = (magnitude * torch.randn(1, tokens, 2, 8, generator=generator) for _ in range(2))
    k[0, 0, 1] = 0  # a head that is all zeros
    cache = written(k, v, 2)
    for x, counts, scale, unit in (
        (k.permute(0, 2, 3, 1), cache.k.permute(0, 1, 3, 2), cache.k_scale, KEY_UNIT),
        (v.permute(0, 2, 3, 1), cache.v, cache.v_scale, VALUE_UNIT),
    ):
        counts, scale = counts[..., 2 : 2 + tokens], scale[..., 2 : 2 + tokens]
        largest = x.abs().amax(2, keepdim=True)
        assert ((scale * counts.float() * unit - x).abs() <= largest / 254 * 1.0001).all()
        assert set(counts.abs().amax(2)[largest[:, :, 0] > 0].tolist()) == {127}
        assert counts.half().mul(unit).float().equal(counts.float() * unit), "float16 holds all counts"
    assert not cache.k[0, 1, 2].any() and cache.k_scale[0, 1, 0, 2] > 0
    assert not cache.k[:, :, :2].any() and not cache.v_scale[..., :2].any()


def test_counts_are_rounded_half_to_even() -> None:
    k = torch.tensor([127.0, 0.5, 1.5, -2.5, -0.5, 3.5, 0.0, -127.0]).expand(1, 1, 2, 8)
    assert written(k, k).k[0, 0, 0].tolist() == [127, 0, 2, -2, 0, 4, 0, -127]


@settings(max_examples=30, deadline=None)
@given(window=st.sampled_from([None, 6, 11]), dtype=st.sampled_from(SMALL), data=st.data())
@torch.inference_mode()
def test_steps_of_any_lengths_equal_one_forward(window: int | None, dtype: CacheDtype, data) -> None:
    """Exactly, in float64, where no count is rounded otherwise. A last step of one token, whose products are float16, nearly."""
    config = tiny_config(window=window)
    whole = random_decoder(config, cache_length=48, cache=dtype).double()
    model = random_decoder(config, cache_length=48, longest_step=8, cache=dtype).double()
    ids = torch.randint(0, config.vocab_size, (1, 41), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    expected, _ = whole(ids, torch.arange(41, dtype=torch.int32))
    caches, position = empty_caches(config, model.geometry), 0
    while position < 41:
        left = 40 - position
        length = min(data.draw(st.integers(2, 8)), left) if left > 3 else max(left, 1)
        length -= 1 if left - length == 1 else 0
        positions = torch.arange(position, position + length, dtype=torch.int32)
        logits, caches = model(ids[:, position : position + length], positions, caches)
        worst = float((logits[0] - expected[0, position : position + length]).abs().max())
        assert worst <= (FLOAT16_STEP if length == 1 else 1e-9)
        position += length
    assert worst > 1e-6


@pytest.mark.parametrize(("dtype", "least", "most"), [(CacheDtype.FLOAT16, 1e-5, 0.02), (CacheDtype.INT8, 0.01, 0.4)])
@torch.inference_mode()
def test_logits_are_near_those_with_a_float32_cache(dtype: CacheDtype, least: float, most: float) -> None:
    config = tiny_config(layers=4)
    generator = torch.Generator().manual_seed(4)
    ids, positions = torch.randint(0, config.vocab_size, (1, 30), dtype=torch.int32, generator=generator), torch.arange(30)
    positions = positions.to(torch.int32)
    expected, _ = random_decoder(config)(ids, positions)
    got, caches = random_decoder(config, cache=dtype)(ids, positions)
    assert least <= float((got - expected).abs().max()) <= most
    step, _ = random_decoder(config, cache=dtype)(ids[:, :1], positions[29:] + 1, caches)
    same, _ = random_decoder(config)(ids[:, :1], positions[29:] + 1, random_decoder(config)(ids, positions)[1])
    assert least <= float((step - same).abs().max()) <= most


@pytest.mark.parametrize("dtype", CacheDtype)
def test_sizes_and_names(dtype: CacheDtype) -> None:
    config = tiny_config(window=6)
    geometry = CacheGeometry(96, 8, dtype)
    caches = empty_caches(config, geometry)
    for block, cache in zip(config.blocks, caches, strict=True):
        assert geometry.bytes(block.attention) == sum(tensor.numel() * tensor.element_size() for tensor in cache)
    scales = ("kv_cache_k_1_scale", "kv_cache_v_1_scale") if dtype is CacheDtype.INT8 else ()
    assert cache_names(caches[1], 1) == ("kv_cache_k_1", "kv_cache_v_1", *scales)
    wide = replace(ATTENTION, head_dim=128, mask=MaskConfig())
    assert geometry.bytes(wide) == 2 * 96 * 2 * {"float32": 512, "float16": 256, "int8": 132}[dtype]
