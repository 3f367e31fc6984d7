"""The builders one by one: against torch and transformers, and the same numbers whether parameters are read or called by name."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # the field's own name for it
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from flatlm.authoring.modules import (
    ApplyRotaryEmb,
    Attention,
    GeluAndMul,
    Llama3Parameters,
    LongRoPEScalingParameters,
    RMSNorm,
    RopeType,
    SiluAndMul,
    YarnParameters,
    build_colwise_linear,
    build_linear,
    build_qkv_proj,
    build_rotary_embedding,
)
from flatlm.authoring.step import Step
from flatlm.authoring.weight_calls import WeightCalls
from flatlm.errors import ConfigError
from flatlm.layers import ops
from flatlm.layers.config import AttentionConfig, MaskConfig
from flatlm.layers.kv_cache import CacheGeometry, KVCache, empty_cache

LENGTH = 24


def step_of(input_pos: Tensor, attentions: list[AttentionConfig] | None = None, caches: Any = (), geometry: Any = None) -> Step:
    return Step(input_pos, geometry or CacheGeometry(LENGTH), attentions or [], caches, len(caches))


# Rotary embedding.

LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0], "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("scaling", "built"),
    [
        ({"rope_type": "default"}, {}),
        ({"rope_type": "linear", "factor": 4.0}, {"emb_type": RopeType.LinearScaling, "scaling_factor": 4.0}),
        ({"rope_type": "default"}, {"emb_type": RopeType.DynamicNTKScaling, "scaling_factor": 4.0}),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
            {"emb_type": RopeType.Llama3, "scaling_factor": 8.0, "llama3_params": Llama3Parameters(1.0, 4.0, 16)},
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 20.0, "beta_slow": 2.0},
            {"emb_type": RopeType.Yarn, "scaling_factor": 4.0, "yarn_params": YarnParameters(20.0, 2.0), "max_position_embeddings": 16},
        ),
        (
            {"rope_type": "longrope", "factor": 4.0, "attention_factor": 1.5, **LONG},
            {
                "emb_type": RopeType.LongRoPEScaling,
                "longrope_params": LongRoPEScalingParameters(tuple(LONG["short_factor"]), tuple(LONG["long_factor"]), 16, 1.5),  # type: ignore[arg-type]
            },
        ),
    ],
)
def test_rotary_embeddings_are_transformers(scaling: dict[str, Any], built: dict[str, Any]) -> None:
    parameters = {"rope_theta": 500.0, **scaling}
    config = LlamaConfig(hidden_size=16, num_attention_heads=2, head_dim=8, rope_parameters=parameters, max_position_embeddings=64)
    positions = torch.arange(3, LENGTH)[None]
    reference = LlamaRotaryEmbedding(config)
    expected_cos, expected_sin = reference(torch.zeros(1), positions)
    rotary = build_rotary_embedding(8, base=500.0, **{"max_position_embeddings": 64, **built})
    with step_of(positions[0]).running():
        cos, sin = rotary(torch.zeros(1), positions.int())
    torch.testing.assert_close(cos, expected_cos)
    torch.testing.assert_close(sin, expected_sin)
    q, k = torch.randn(1, LENGTH - 3, 3, 8), torch.randn(1, LENGTH - 3, 1, 8)
    turned = ApplyRotaryEmb()(q[0], k[0], cos[0], sin[0], inplace=True)
    for got, expected in zip(turned, apply_rotary_pos_emb(q, k, expected_cos, expected_sin, unsqueeze_dim=2), strict=True):
        torch.testing.assert_close(got, expected[0])


def test_rotary_embeddings_say_what_they_lack() -> None:
    with pytest.raises(ValueError, match=r"RopeType.Yarn needs yarn_params"):
        build_rotary_embedding(8, emb_type=RopeType.Yarn)
    with pytest.raises(RuntimeError, match="outside of a model's forward"):
        build_rotary_embedding(8)(torch.zeros(1), torch.zeros(1, 1))


# Attention.


@pytest.mark.parametrize("steps", [[24], [1] * 24, [8, 1, 8, 7]], ids=str)
@pytest.mark.parametrize(
    ("keywords", "geometry"),
    [
        ({}, CacheGeometry(LENGTH)),
        ({"scale": 0.3, "logit_softcapping": 2.0}, CacheGeometry(LENGTH)),
        ({"sliding_window": 5}, CacheGeometry(LENGTH, 8)),  # in a ring of 16 slots
        ({"sliding_window": -1}, CacheGeometry(LENGTH, 24)),
    ],
    ids=["plain", "bounded", "window", "no window"],
)
def test_attention_is_torchs(keywords: dict[str, Any], geometry: CacheGeometry, steps: list[int]) -> None:
    attention, (heads, keys, width) = Attention(6, 4, num_kv_heads=2, **keywords), (6, 2, 4)
    if geometry.longest_step is not None and max(steps) > geometry.longest_step:
        steps = [8, 8, 8]
    q, k, v = (torch.randn(LENGTH, n, width) for n in (heads, keys, keys))
    scores = torch.einsum("tnh,snh->nts", q, k.repeat_interleave(heads // keys, 1)) * keywords.get("scale", width**-0.5)
    if cap := keywords.get("logit_softcapping"):
        scores = torch.tanh(scores / cap) * cap
    distance = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    window = keywords.get("sliding_window", -1)
    hidden = (distance < 0) | ((distance >= window) if window > 0 else torch.zeros(1, dtype=torch.bool))
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    expected = torch.einsum("nts,snh->tnh", weights, v.repeat_interleave(heads // keys, 1))
    cache, out, first = empty_cache(attention.config, geometry), [], 0
    for count in steps:
        now = slice(first, first + count)
        step = step_of(torch.arange(first, first + count, dtype=torch.int32), [attention.config], [cache], geometry)
        layer = step.layers[0]
        out.append(attention(q[now], k[now], v[now], layer[0], layer[1]))
        cache, first = layer.cache, first + count
    torch.testing.assert_close(torch.cat(out), expected)
    if keywords == {"sliding_window": 5}:
        assert isinstance(cache, KVCache) and cache.k.shape[2] == 16


def test_attention_says_what_it_does_not_do() -> None:
    for keywords in ({"alibi": True}, {"causal": False}, {"v_head_size": 8}):
        with pytest.raises(ValueError, match="causal attention without ALiBi, whose values are as wide as its keys"):
            Attention(4, 16, **keywords)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_kv_heads = 3 does not divide num_heads = 4"):
        Attention(4, 16, num_kv_heads=3)
    assert Attention(4, 16).config == AttentionConfig(4, 4, 16, None, mask=MaskConfig(None))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Attention(4, 16, learnable_sink=True), r"Attention(learnable_sink=True) is not supported"),
        (lambda: Attention(4, 16, window=4), "Attention has no keyword 'window': did you mean sliding_window?"),
        (lambda: Attention(4, 16, logit_softcap=2.0), "did you mean logit_softcapping?"),
        (lambda: Attention(4, 16, use_alibi=True), "did you mean alibi?"),
        (lambda: attended(s_aux=torch.ones(4)), "Attention.forward(s_aux="),
        (lambda: attended(sinks=torch.ones(4)), "Attention.forward has no keyword 'sinks'"),
        (lambda: RMSNorm(8, epsilon=1e-3), "RMSNorm has no keyword 'epsilon': did you mean eps?"),
        (lambda: SiluAndMul(limit=7.0), "SiluAndMul has no keyword 'limit'"),
        (lambda: build_linear(4, 6, bias=True, weight=1), "build_linear has no keyword 'weight'"),
        (lambda: build_qkv_proj(12, 4, 2, 8, num_replicate_kv_heads=2), "build_qkv_proj(num_replicate_kv_heads=2) is not supported"),
        (lambda: build_rotary_embedding(8, partial_rotary_factor=0.5), "build_rotary_embedding(partial_rotary_factor=0.5)"),
    ],
)
def test_keywords_that_would_be_lost_are_refused(build: Callable[[], Any], said: str) -> None:
    with pytest.raises(TypeError, match=re.escape(said)):
        build()


def attended(q: tuple[int, ...] = (2, 4, 16), k: tuple[int, ...] = (2, 2, 16), **keywords: Any) -> None:
    layer = Step(torch.arange(2, dtype=torch.int32), CacheGeometry(LENGTH), [], None, 1).layers[0]
    attention = Attention(4, 16, num_kv_heads=2)
    attention(torch.zeros(q), torch.zeros(k), torch.zeros(k), layer[0], layer[1], **keywords)


@pytest.mark.parametrize(
    ("q", "k"),
    [
        ((1, 4, 2, 16), (1, 2, 2, 16)),
        ((2, 8, 8), (2, 4, 8)),
        ((2, 64), (2, 32)),
        ((2, 2, 4, 16), (2, 2, 2, 16)),
        ((2, 4, 16), (1, 2, 16)),
    ],
    ids=["transformers", "other heads", "flat", "two texts", "fewer keys"],
)
def test_attention_takes_its_own_shapes_only(q: tuple[int, ...], k: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"queries [T, 4, 16] and keys and values [T, 2, 16], or the same behind a 1; it was given {list(q)}")
    ):
        attended(q, k)


# Linears, norms, activations.


def test_activations_and_norms() -> None:
    x, residual = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    torch.testing.assert_close(SiluAndMul(inplace=True)(x), F.silu(x[..., :4]) * x[..., 4:])
    torch.testing.assert_close(GeluAndMul("tanh")(x), F.gelu(x[..., :4], approximate="tanh") * x[..., 4:])
    norm = RMSNorm(8, 1e-3, quant_config=None, is_tp=False)
    nn.init.normal_(norm.weight)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (8,), norm.weight, 1e-3))
    normed, total = norm(x, residual)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normed, F.rms_norm(x + residual, (8,), norm.weight, 1e-3))


def test_linears_and_what_they_take() -> None:
    for build in (build_linear, build_colwise_linear):
        linear = build(4, 6, bias=True, dtype=torch.float32, device=None, quant_config={"bits": 4}, is_tp=True)
        assert [tuple(parameter.shape) for parameter in linear.parameters()] == [(6, 4), (6,)]
    qkv = build_qkv_proj(12, 4, 2, 8)
    q, k, v = qkv.split_qkv(torch.arange(64.0).repeat(5, 1))
    assert [tuple(part.shape) for part in (q, k, v)] == [(5, 4, 8), (5, 2, 8), (5, 2, 8)]
    assert (int(q[0, 0, 0]), int(k[0, 0, 0]), int(v[0, 0, 0])) == (0, 32, 48)
    with pytest.raises(ValueError, match="head_size_v = 4"):
        build_qkv_proj(12, 4, 2, 8, 4)


# Parameters called by name.


class Zoo(nn.Module):
    """Parameters read in every way that comes to mind."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.positions = nn.Embedding(16, 8, padding_idx=0), nn.Embedding(4, 8)
        self.plain, self.biased = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.layer_norm, self.bare_norm, self.rms_norm = nn.LayerNorm(8), nn.LayerNorm(8, bias=False), nn.RMSNorm(8)
        self.heads_norm = nn.LayerNorm((2, 4), eps=1e-3)
        self.gain, self.matrix, self.stack = (nn.Parameter(torch.empty(shape)) for shape in ((8,), (8, 8), (2, 8, 8)))
        self.register_buffer("fixed", torch.arange(8.0))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.positions(torch.arange(ids.shape[1])[None])
        x = self.biased(self.plain(x)).to(self.gain.dtype).to(self.gain.device)
        x = self.layer_norm(x) + self.bare_norm(x) + self.rms_norm(x) + self.heads_norm(x.unflatten(-1, (2, 4))).flatten(-2)
        x = x * (1 + self.gain.float()) + self.gain.data.new_ones(8) + self.fixed
        x = x @ self.matrix + torch.addmm(self.gain, x[0], self.matrix) + F.linear(x, self.matrix.T, self.gain * 2)
        x = F.linear(x, self.plain.weight, bias=x.mean((0, 1))) + torch.stack([x @ part for part in self.stack.unbind(0)]).sum(0)
        assert len(self.stack) == 2 and self.matrix.shape == (8, 8) and self.matrix.dim() == 2 and self.stack.numel() == 128
        return F.linear(x, self.table.weight)


def named(values: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that find their weights by name, as the linker does."""

    def linear(x: Tensor, weight: str, bias: str, out_features: int) -> Tensor:
        assert values[weight].shape[0] == out_features
        return F.linear(x, values[weight], values[bias] if bias else None)

    def embedding(ids: Tensor, weight: str, dim: int) -> Tensor:
        assert ids.dtype == torch.int32 and ids.dim() == 1 and values[weight].shape[1] == dim
        return F.embedding(ids, values[weight])

    def parameter(like: Tensor, name: str, shape: list[int]) -> Tensor:
        assert like.dtype == torch.float32 and not like.is_meta and list(values[name].shape) == shape
        return values[name]

    for call in (linear, embedding, parameter):
        monkeypatch.setattr(ops, call.__name__, call)


def test_parameters_called_by_name_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    zoo, ids = Zoo(), torch.tensor([[1, 5, 7]], dtype=torch.int32)
    generator = torch.Generator().manual_seed(0)
    for parameter in zoo.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    expected = zoo(ids)
    renamed = {"table.weight": "embedding.weight"}
    values = {renamed.get(name, name): parameter.detach() for name, parameter in zoo.named_parameters()}
    with torch.device("meta"):
        empty = Zoo()
    empty.fixed = zoo.fixed
    named(values, monkeypatch)
    with torch.no_grad(), WeightCalls(list(empty.named_parameters()), torch.zeros(1), renamed) as calls:
        torch.testing.assert_close(empty(ids), expected)
    assert calls.uses.tables == {"embedding.weight": 3, "positions.weight": 3}
    assert list(calls.uses.linears.items())[-1] == ("embedding.weight", None)
    assert calls.uses.linears["biased.weight"] == "biased.bias"
    assert {"gain", "matrix", "stack", "layer_norm.weight", "heads_norm.bias"} <= calls.uses.others.keys()


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda zoo: zoo.gain.add_(1), "forward changes the parameter gain in place (add_)"),
        (lambda zoo: F.embedding(torch.zeros(1, dtype=torch.int32), zoo.table.weight, max_norm=1.0), "look up rows of a parameter"),
    ],
)
def test_what_cannot_be_called_by_name(read: Callable[[Zoo], Any], said: str) -> None:
    with torch.device("meta"):
        zoo = Zoo()
    zoo.requires_grad_(False)
    with WeightCalls(list(zoo.named_parameters()), torch.zeros(1)), pytest.raises(ConfigError) as caught:
        read(zoo)
    assert said in str(caught.value)
