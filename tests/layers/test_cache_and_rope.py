"""Layers: prefill(n) + decode = forward(n + 1), the rope tables, the mask, update_slice."""

import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from flatlm.layers import ops
from flatlm.layers.config import (
    MASKED,
    Activation,
    FeedForwardConfig,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    MaskConfig,
    NormConfig,
    NormKind,
    RopeConfig,
    YarnScaling,
)
from flatlm.layers.feed_forward import FeedForward
from flatlm.layers.kv_cache import CacheSlots, KVCache, empty_caches
from flatlm.layers.mask import attention_mask
from flatlm.layers.model import Decoder
from flatlm.layers.norm import Norm
from flatlm.layers.rope import halves_order, rope_tables, rotate
from tests.models import random_decoder, tiny_config

EXACT = 1e-10
"""In float64, where only the order of sums differs."""


def empty_doubles(model: Decoder) -> list[KVCache]:
    return [KVCache(k.double(), v.double()) for k, v in empty_caches(model.config, model.geometry)]


CONFIGS = st.builds(tiny_config, layers=st.integers(1, 3), kv_heads=st.sampled_from([1, 2, 4]), tied=st.booleans(), bias=st.booleans())


@settings(max_examples=40, deadline=None)
@given(config=CONFIGS, total=st.integers(2, 20), data=st.data())
@torch.inference_mode()
def test_prefill_and_decode_equal_one_forward(config, total: int, data) -> None:
    model = random_decoder(config, cache_length=24, seed=total).double()
    ids = torch.randint(0, config.vocab_size, (1, total), dtype=torch.int32)
    whole, _ = model(ids, torch.arange(total, dtype=torch.int32), empty_doubles(model))
    prefix = data.draw(st.integers(1, total - 1))
    _, caches = model(ids[:, :prefix], torch.arange(prefix, dtype=torch.int32), empty_doubles(model))
    for position in range(prefix, total):
        logits, caches = model(ids[:, position : position + 1], torch.tensor([position], dtype=torch.int32), caches)
        assert float((logits[0, 0] - whole[0, position]).abs().max()) <= EXACT


@settings(max_examples=60, deadline=None)
@given(window=st.integers(1, 20), longest=st.integers(1, 12), data=st.data())
@torch.inference_mode()
def test_a_ring_gives_what_the_whole_cache_gives(window: int, longest: int, data) -> None:
    """Steps of any lengths up to the longest, each perhaps padded with garbage as far as that, over several turns of the ring."""
    config = tiny_config(window=window)
    whole, ring = random_decoder(config, cache_length=96).double(), random_decoder(config, cache_length=96, longest_step=longest).double()
    assert ring.geometry.slots(config.blocks[0].attention) < 96
    ids = torch.randint(0, config.vocab_size, (1, 80), dtype=torch.int32)
    expected, _ = whole(ids, torch.arange(80, dtype=torch.int32), empty_doubles(whole))
    caches, position = [KVCache(torch.full_like(k, 3.0), torch.full_like(v, 3.0)) for k, v in empty_doubles(ring)], 0
    while position < 80:
        used = min(data.draw(st.integers(1, longest)), 80 - position)
        pad = data.draw(st.integers(0, longest - used))
        step = torch.cat([ids[:, position : position + used], torch.full((1, pad), 7, dtype=torch.int32)], 1)
        # LiteRT-LM gives padding the position 0
        positions = torch.cat([torch.arange(position, position + used), torch.zeros(pad)]).to(torch.int32)
        logits, caches = ring(step, positions, caches)
        assert float((logits[0, :used] - expected[0, position : position + used]).abs().max()) <= EXACT
        position += used


@settings(max_examples=20, deadline=None)
@given(filled=st.integers(1, 12), pad=st.integers(1, 8))
@torch.inference_mode()
def test_padding_behind_a_prefill_does_not_reach_later_tokens(filled: int, pad: int) -> None:
    config = tiny_config()
    model = random_decoder(config, cache_length=24).double()
    ids = torch.randint(0, config.vocab_size, (1, filled + 1), dtype=torch.int32)
    whole, _ = model(ids, torch.arange(filled + 1, dtype=torch.int32), empty_doubles(model))
    padded = torch.cat([ids[:, :filled], torch.full((1, pad), 7, dtype=torch.int32)], 1)
    _, caches = model(padded, torch.arange(filled + pad, dtype=torch.int32), empty_doubles(model))
    logits, _ = model(ids[:, filled:], torch.tensor([filled], dtype=torch.int32), caches)
    assert float((logits[0, 0] - whole[0, filled]).abs().max()) <= EXACT


SHORT, LONG = tuple(1 + i / 32 for i in range(32)), tuple(1.5 + i for i in range(32))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (None, {"rope_type": "default"}),
        (LinearScaling(4.0), {"rope_type": "linear", "factor": 4.0}),
        (
            Llama3Scaling(32.0, 1.0, 4.0, 8192),
            {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
        (
            YarnScaling(4.0, 32768, 0.1 * math.log(4.0) + 1.0),
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        ),
        (
            YarnScaling(8.0, 4096, 1.25, beta_fast=16.0, beta_slow=2.0, truncate=False),
            {
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 4096,
                "attention_factor": 1.25,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "truncate": False,
            },
        ),
        (
            LongRopeScaling(SHORT, LONG, 4096, 1.19),
            {
                "rope_type": "longrope",
                "short_factor": SHORT,
                "long_factor": LONG,
                "original_max_position_embeddings": 4096,
                "attention_factor": 1.19,
            },
        ),
        (
            LongRopeScaling(SHORT, LONG, 4095, 1.19),
            {
                "rope_type": "longrope",
                "short_factor": SHORT,
                "long_factor": LONG,
                "original_max_position_embeddings": 4095,
                "attention_factor": 1.19,
            },
        ),
    ],
    ids=["default", "linear", "llama3", "yarn", "yarn_betas", "longrope_short", "longrope_long"],
)
def test_rope_tables_are_transformers(ours, theirs) -> None:
    config = transformers.LlamaConfig(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=131072, rope_parameters={"rope_theta": 500000.0, **theirs}
    )
    rotary = LlamaRotaryEmbedding(config)
    positions = torch.arange(4096)[None]
    cos, sin = rotary(torch.zeros(1), positions)
    our_cos, our_sin = rope_tables(RopeConfig(64, 500000.0, ours), 4096)
    tolerance = 1e-3 if isinstance(ours, YarnScaling) else 0.0  # a frequency's last bit, times 4095 radians
    assert float((our_cos - cos[0]).abs().max()) <= tolerance
    assert float((our_sin[:, 32:] - sin[0, :, 32:]).abs().max()) <= tolerance
    assert torch.equal(our_sin[:, :32], -our_sin[:, 32:])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("turning", [4, 8, 16])
def test_reordered_heads_turn_as_the_checkpoints_do(interleaved: bool, turning: int) -> None:
    """Scores of reordered queries and keys against a direct reading of the definition: pairs (i, i + R/2), or (2i, 2i + 1), turn."""
    rope = RopeConfig(16, rotary_dim=turning)
    generator = torch.Generator().manual_seed(turning)
    q, k = torch.randn(2, 16, generator=generator).double()

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        x, half = x.clone(), turning // 2
        for i in range(half):
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
            angle = position * 10000.0 ** (-2 * i / turning)
            x[a], x[b] = x[a] * math.cos(angle) - x[b] * math.sin(angle), x[a] * math.sin(angle) + x[b] * math.cos(angle)
        return x

    cos, sin = (table.double() for table in rope_tables(rope, 64))
    order = torch.tensor(halves_order(rope, interleaved=interleaved))
    ours = rotate(q[order], cos[7], sin[7]) @ rotate(k[order], cos[40], sin[40])
    assert float(ours) == pytest.approx(float(turned(q, 7) @ turned(k, 40)), abs=1e-4)


@given(st.integers(0, 1000), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_rotated_products_depend_on_distance_only(first: int, second: int) -> None:
    cos, sin = (table.double() for table in rope_tables(RopeConfig(16), 3000))
    generator = torch.Generator().manual_seed(first)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=generator, dtype=torch.float64)

    def product(a: int, b: int) -> float:
        return float((rotate(q, cos[a : a + 1, None], sin[a : a + 1, None]) * rotate(k, cos[b : b + 1, None], sin[b : b + 1, None])).sum())

    assert product(first, second) == pytest.approx(product(first + 500, second + 500), abs=1e-3)


def test_mask_opens_what_is_not_later() -> None:
    mask = attention_mask(MaskConfig(), torch.tensor([2, 3], dtype=torch.int32), torch.arange(5))
    assert (mask == 0).tolist() == [[True, True, True, False, False], [True, True, True, True, False]]
    assert torch.softmax(mask, -1)[0, 3:].tolist() == [0.0, 0.0]


def test_window_and_alibi_masks() -> None:
    held = torch.tensor([4, 5, 2, 3, -1], dtype=torch.int32)  # a ring that has come round, with an empty slot
    mask = attention_mask(MaskConfig(window=2), torch.tensor([4, 5], dtype=torch.int32), held)
    assert (mask == 0).tolist() == [[True, False, False, True, False], [True, True, False, False, False]]
    sloped = attention_mask(MaskConfig(3, alibi_slopes=(0.5, 0.25)), torch.tensor([4], dtype=torch.int32), held)
    assert sloped[:, 0].tolist() == [[0.0, MASKED, -1.0, -0.5, MASKED], [0.0, MASKED, -0.5, -0.25, MASKED]]


@given(start=st.integers(-3, 12), size=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_update_slice_clamps_as_the_runtime_does(start: int, size: int) -> None:
    cache, update = torch.zeros(1, 2, 8, 3), torch.ones(1, 2, size, 3)
    out = ops.update_slice(cache, update, torch.tensor([0, 0, start, 0], dtype=torch.int32))
    first = min(max(start, 0), 8 - size)
    assert out[0, 0, :, 0].tolist() == [1.0 if first <= slot < first + size else 0.0 for slot in range(8)]
    assert not cache.any()


def test_cache_slots_start_at_the_first_position() -> None:
    slots = CacheSlots.at(torch.tensor([5], dtype=torch.int32))
    assert (slots.k.tolist(), slots.v.tolist()) == ([0, 0, 5, 0], [0, 0, 0, 5])
    cache = KVCache(torch.zeros(1, 2, 8, 4), torch.zeros(1, 2, 4, 8)).update(torch.ones(1, 3, 2, 4), 2 * torch.ones(1, 3, 2, 4), slots)
    assert cache.k[0, 1, :, 0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert cache.v[0, 1, 3, :].tolist() == [0, 0, 0, 0, 0, 2, 2, 2]


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        (Activation.SILU, torch.nn.functional.silu),
        (Activation.GELU, torch.nn.functional.gelu),
        (Activation.GELU_TANH, lambda x: torch.nn.functional.gelu(x, approximate="tanh")),
        (Activation.RELU, torch.relu),
    ],
)
@torch.inference_mode()
def test_feed_forwards_gated_and_plain(activation, function) -> None:
    x = torch.randn(2, 3, 8)
    for gated in (True, False):
        layer = FeedForward(8, FeedForwardConfig(12, activation, gated=gated, bias=True))
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
        if gated:
            gate, up = torch.nn.functional.linear(x, layer.gate_up.weight, layer.gate_up.bias).split(12, -1)
            hidden = function(gate) * up
        else:
            hidden = function(torch.nn.functional.linear(x, layer.up.weight, layer.up.bias))
        expected = torch.nn.functional.linear(hidden, layer.down.weight, layer.down.bias)
        assert float((layer(x) - expected).abs().max()) <= 1e-4


@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm_is_torchs(bias: bool) -> None:
    norm = Norm(NormConfig(NormKind.LAYER, eps=1e-3, bias=bias), 16)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x = 5 + torch.randn(3, 16)
    expected = torch.nn.functional.layer_norm(x, (16,), norm.weight, norm.bias, 1e-3)
    assert float((norm(x) - expected).detach().abs().max()) <= 1e-5
