"""A turned residual stream changes no logit; what cannot be turned says why."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flatlm.convert.in_memory import InMemory
from flatlm.layers.config import FeedForwardConfig, MixtureConfig, ModelConfig, NormConfig, NormKind, PositionEmbeddingConfig
from flatlm.quantize.rotation import random_hadamard
from flatlm.utilities.calibration import rotate as module
from flatlm.utilities.calibration.rotate import obstacle, rotate
from tests.models import random_decoder, tiny_config
from tests.utilities.calibration.models import TOKENS, doubled, family, logits, random_tokens, sources_of

FAMILIES = [
    "llama-grouped_queries",
    "llama-biases",
    "llama-wide_heads",
    "gemma-untied_head",
    "mistral-window",
    "qwen2-plain",
    "qwen3-plain",
    "smollm3-untied_biases",
    "phi3-plain",
    "mixtral-four_experts",
    "qwen3_moe-plain",
    "olmoe-clipped",
    "granite-multipliers",
]


def check(config: ModelConfig, sources: dict[str, InMemory]) -> None:
    assert obstacle(config) is None
    tokens = random_tokens(config, 2)
    turned = rotate(config, sources)
    assert turned.keys() == sources.keys()
    expected, found = (logits(doubled(config, each), tokens) for each in (sources, turned))
    assert float(expected.std()) > 0.05
    assert float((found - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))
    matrix = random_hadamard(config.embedding_dim)
    assert torch.allclose(turned["embedding.weight"].rows(0, 9), sources["embedding.weight"].rows(0, 9) @ matrix, atol=1e-5)
    for name, source in turned.items():
        assert source.shape == sources[name].shape
        assert source.origin(0) == sources[name].origin(0)
        pieces = [source.rows(start, min(start + 7, source.shape[0])) for start in range(0, source.shape[0], 7)]
        assert torch.allclose(torch.cat(pieces), source.rows(0, source.shape[0]), atol=1e-6)
        if name.endswith(("attention_norm.weight", "feed_forward_norm.weight", "final_norm.weight")):
            assert torch.equal(source.rows(0, source.shape[0]), torch.ones(source.shape))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_computes_what_it_did(name: str) -> None:
    model = family(name)
    check(model.config, sources_of(model))


def variant(kind: str) -> ModelConfig:
    config = tiny_config(bias=True)
    block = config.blocks[0]
    plain = replace(block, feed_forward=FeedForwardConfig(48, gated=False, bias=True))
    changes = {
        "plain": replace(config, blocks=(plain,) * 2),
        "parallel": replace(config, blocks=(replace(block, parallel=True),) * 2),
        "shared_norm": replace(config, blocks=(replace(block, parallel=True, feed_forward_norm=None),) * 2),
        "bare_norms": replace(
            config,
            final_norm=NormConfig(weight=False),
            blocks=(replace(block, attention_norm=NormConfig(weight=False), feed_forward_norm=NormConfig(weight=False)),) * 2,
        ),
        "plain_experts": replace(
            config, blocks=(replace(block, feed_forward=MixtureConfig(FeedForwardConfig(48, gated=False), 3, 2)),) * 2
        ),
        "positions": replace(config, position_embedding=PositionEmbeddingConfig(100, 2)),
        "head_bias": replace(config, head_bias=True),
        "scales": replace(
            config, embedding_scale=3.0, logit_scale=0.5, logit_softcap=7.0, blocks=(replace(block, residual_scale=0.4),) * 2
        ),
        "odd_width": replace(config, embedding_dim=36),
    }
    return changes[kind]


@pytest.mark.parametrize(
    "kind", ["plain", "parallel", "shared_norm", "bare_norms", "plain_experts", "positions", "head_bias", "scales", "odd_width"]
)
def test_every_kind_of_block_can_be_turned(kind: str) -> None:
    config = variant(kind)
    check(config, sources_of(random_decoder(config, cache_length=TOKENS)))


LAYER_NORM = NormConfig(NormKind.LAYER)


def hindered(kind: str) -> ModelConfig:
    config = tiny_config()
    block = config.blocks[0]
    last = {
        "attention_post_norm": replace(block, attention_post_norm=NormConfig()),
        "feed_forward_post_norm": replace(block, feed_forward_post_norm=NormConfig()),
        "no_attention_norm": replace(block, attention_norm=None),
        "no_feed_forward_norm": replace(block, feed_forward_norm=None),
        "layer_norm": replace(block, attention_norm=LAYER_NORM),
        "feed_forward_layer_norm": replace(block, feed_forward_norm=LAYER_NORM),
        "shared_layer_norm": replace(block, attention_norm=LAYER_NORM, feed_forward_norm=None, parallel=True),
        "norm_bias": replace(block, attention_norm=NormConfig(bias=True)),
    }
    if kind in last:
        return replace(config, blocks=(block, last[kind]))
    return replace(config, **{"tied": {"tied_head": True}, "final_layer_norm": {"final_norm": LAYER_NORM}}[kind])


@pytest.mark.parametrize(
    ("kind", "reason"),
    {
        "tied": "tied to the embedding",
        "attention_post_norm": "between its blocks' branches and the residual stream",
        "feed_forward_post_norm": "between its blocks' branches and the residual stream",
        "no_attention_norm": "without a norm",
        "no_feed_forward_norm": "without a norm",
        "layer_norm": "not root mean squares",
        "feed_forward_layer_norm": "not root mean squares",
        "shared_layer_norm": "not root mean squares",
        "norm_bias": "not root mean squares",
        "final_layer_norm": "not root mean squares",
    }.items(),
)
def test_what_cannot_be_turned_says_why(kind: str, reason: str) -> None:
    assert reason in (obstacle(hindered(kind)) or "nothing")


@pytest.mark.parametrize("name", ["gemma2-untied_head", "gpt2-untied_head", "falcon-7b_untied_head", "olmo2-biases", "llama-tied_head"])
def test_families_that_cannot_be_turned(name: str) -> None:
    assert obstacle(family(name).config) is not None


def test_turning_spreads_a_large_channel() -> None:
    model = family("llama-grouped_queries")
    values = model.embedding.weight.clone()
    values[:, 11] *= 100
    sources = {**sources_of(model), "embedding.weight": InMemory(values)}
    turned = rotate(model.config, sources)["embedding.weight"].rows(0, len(values))

    def outlying(table: Tensor) -> float:
        return float((table.abs().amax(1) / table.square().mean(1).sqrt()).mean())

    assert outlying(turned) < 0.5 * outlying(values)


def test_a_wrong_turn_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above rest on: a matrix that is not orthogonal is no rotation."""
    model = family("llama-grouped_queries")
    matrix = random_hadamard(64)
    matrix[3] *= 1.01
    monkeypatch.setattr(module, "random_hadamard", lambda size, seed: matrix)
    tokens = random_tokens(model.config, 2)
    expected = logits(doubled(model.config, sources_of(model)), tokens)
    turned = logits(doubled(model.config, rotate(model.config, sources_of(model))), tokens)
    assert float((turned - expected).abs().max()) > 1e-3


def test_rows_of_a_turned_weight_can_be_read_on_many_threads_and_are_let_go() -> None:
    model = family("llama-grouped_queries")
    reads = []

    class Slow(InMemory):
        def rows(self, start: int, stop: int) -> Tensor:
            reads.append(threading.get_ident())
            threading.Event().wait(0.05)
            return super().rows(start, stop)

    name = "blocks.0.attention.output.weight"
    source = rotate(model.config, {**sources_of(model), name: Slow(model.blocks[0].attention.output.weight.data)})[name]
    with ThreadPoolExecutor(8) as pool:
        rows = torch.cat(list(pool.map(lambda start: source.rows(start, start + 8), range(0, 64, 8))))
    assert len(reads) == 1  # the whole is made once
    assert source._whole is None  # and let go when all has been taken
    assert torch.allclose(rows, random_hadamard(64).T @ model.blocks[0].attention.output.weight.data, atol=1e-5)
