"""Scales moved between weights change no logit; the scales do what they are moved for."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from flatlm.convert.weights import WeightSource
from flatlm.layers.block import Block
from flatlm.layers.config import BlockConfig
from flatlm.layers.model import Decoder
from flatlm.quantize.encode import decode, encode
from flatlm.quantize.schemes import get_scheme
from flatlm.utilities.calibration import migrate
from flatlm.utilities.calibration.migrate import Pair, inner_pairs, norm_pairs
from flatlm.utilities.calibration.stream import ModelStream, linears
from tests.utilities.calibration.models import TOKENS, doubled, family, logits, random_tokens, sources_of, tiny

FAMILIES = [
    "llama-grouped_queries",
    "llama-one_key_value_head",
    "llama-biases",
    "llama-wide_heads",
    "gemma-plain",
    "gemma2-small_caps",
    "gemma3-plain",
    "qwen2-plain",
    "qwen3-bias",
    "gpt2-as_published",
    "gpt_neox-pythia",
    "gpt_neox-sequential",
    "opt-bare_norms",
    "phi-normalised_queries_and_keys",
    "falcon-rw",
    "falcon-7b_biases",
    "falcon-40b",
    "falcon-falcon2",
    "mixtral-four_experts",
    "qwen3_moe-some_layers_dense",
    "olmoe-clipped",
    "granite-biases",
    "stablelm-2_12b",
    "olmo-1b",
    "olmo2-biases",
    "olmo3-7b",
]


def scales_for(pair: Pair, width: int, seed: int) -> Tensor:
    """Between 1/4 and 4; heads that must share theirs do."""
    scales = 4 ** (2 * torch.rand(width, generator=torch.Generator().manual_seed(seed)) - 1)
    if pair.folded is not None:
        scales = scales.reshape(pair.folded)[:, :1].expand(pair.folded).reshape(-1)
    return scales


def migrated(model: Decoder) -> tuple[dict[str, WeightSource], list[Pair], list[Block]]:
    """The sources with random scales moved wherever they can be, the pairs, and the blocks that were changed along."""
    sources, pairs, blocks = sources_of(model), [], []
    stream = ModelStream(model.config, sources, TOKENS)
    for layer in range(len(model.config.blocks)):
        block = stream.block(layer)
        for seed, pair in enumerate((*norm_pairs(block), *inner_pairs(block))):
            width = linears(block)[pair.reads[0]].weight.shape[1]
            migrate.apply(block, pair, scales_for(pair, width, seed), f"blocks.{layer}", sources)
            pairs.append(pair)
        blocks.append(block)
    return sources, pairs, blocks


def expected_pairs(config: BlockConfig) -> Iterator[str]:
    """Which inputs can be scaled, from the configuration alone."""
    if config.attention_norm is not None and config.attention_norm.weight:
        yield "attention.qkv"
    feed_forward = getattr(config.feed_forward, "expert", config.feed_forward)
    if config.feed_forward_norm is not None and config.feed_forward_norm.weight:
        yield "feed_forward"
    if config.attention.clip is None:
        yield "attention.output"
    if feed_forward.gated:
        yield from ["down"] * getattr(config.feed_forward, "num_experts", 1)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_computes_what_it_did(name: str) -> None:
    model = family(name)
    tokens = random_tokens(model.config, 2)
    sources, pairs, blocks = migrated(model)
    assert len(pairs) == sum(len(list(expected_pairs(config))) for config in model.config.blocks)
    expected = logits(doubled(model.config, sources_of(model)), tokens)
    found = logits(doubled(model.config, sources), tokens)
    assert float((found - expected).abs().max()) < 2e-6 * max(1.0, float(expected.abs().max()))
    for pair in pairs:
        changed = [f"blocks.0.{read}.weight" for read in pair.reads if f"blocks.0.{read}.weight" in sources]
        assert all(float((sources[name].rows(0, 1) - sources_of(model)[name].rows(0, 1)).abs().max()) > 0 for name in changed)
    for layer, block in enumerate(blocks):  # the block at hand and the sources are the same
        for parameter, values in block.named_parameters():
            source = sources[f"blocks.{layer}.{parameter}"]
            assert torch.allclose(source.rows(0, source.shape[0]), values, rtol=1e-6)
            half = source.shape[0] // 2
            assert torch.equal(torch.cat([source.rows(0, half), source.rows(half, source.shape[0])]), source.rows(0, source.shape[0]))


@pytest.mark.parametrize("mutation", ["no division", "other rows", "no sharing", "no bias"])
def test_a_wrong_move_shows(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above rests on: a move that is not made good changes the logits a good deal."""
    model = family("llama-biases")
    tokens = random_tokens(model.config, 2)
    right = inner_pairs

    def wrong(block: Block) -> Iterator[Pair]:
        for pair in right(block):
            gives = dict(pair.gives)
            if mutation == "no division":
                gives = {}
            if mutation == "other rows":
                gives = {name: slice(rows.start - 4, rows.stop - 4) for name, rows in gives.items()}
            if mutation == "no bias":
                gives = {name: rows for name, rows in gives.items() if not name.endswith("bias")}
            yield Pair(pair.reads, gives, pair.folded)

    monkeypatch.setitem(globals(), "inner_pairs", wrong)
    if mutation == "no sharing":
        monkeypatch.setitem(globals(), "scales_for", lambda pair, width, seed: 1 + torch.rand(width))
    sources, _, _ = migrated(model)
    expected = logits(doubled(model.config, sources_of(model)), tokens)
    assert float((logits(doubled(model.config, sources), tokens) - expected).abs().max()) > 1e-3


def reads_of(block: Block) -> list[tuple[str, ...]]:
    return [pair.reads for pair in (*norm_pairs(block), *inner_pairs(block))]


def block_of(name: str) -> Block:
    return ModelStream(family(name).config, sources_of(family(name)), TOKENS).block(0)


def test_what_shares_an_input_shares_its_scales() -> None:
    assert reads_of(block_of("llama-grouped_queries")) == [
        ("attention.qkv",),
        ("feed_forward.gate_up",),
        ("attention.output",),
        ("feed_forward.down",),
    ]
    assert reads_of(block_of("falcon-7b")) == [("attention.qkv", "feed_forward.up"), ("attention.output",)]
    assert reads_of(block_of("falcon-40b")) == [("attention.qkv",), ("feed_forward.up",), ("attention.output",)]
    experts = [f"feed_forward.experts.{index}" for index in range(4)]
    assert reads_of(block_of("mixtral-four_experts")) == [
        ("attention.qkv",),
        ("feed_forward.router", *(f"{expert}.gate_up" for expert in experts)),
        ("attention.output",),
        *((f"{expert}.down",) for expert in experts),
    ]
    assert reads_of(block_of("olmo-7b_clipped")) == [("feed_forward.down",)]  # norms without weights, and clipped values
    assert reads_of(block_of("olmo2-biases")) == [("attention.output",), ("feed_forward.down",)]  # no norm before


SCHEME = get_scheme("dynamic_int4_block32")
PLAIN_PAIR = Pair(("attention.qkv",), {})


def outlying(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight [64, 96], and inputs [512, 96] of which every twelfth channel is thirty times as large."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(512, 96, generator=generator)
    x[:, ::12] *= 30
    return torch.randn(64, 96, generator=generator), x


def output_error(weight: Tensor, x: Tensor, scales: Tensor) -> float:
    read = decode(encode(weight * scales, SCHEME), SCHEME, weight.shape) / scales
    return float((x @ (weight - read).T).square().mean())


def test_the_scales_of_awq_leave_less_error() -> None:
    weight, x = outlying()
    scales = migrate.search([(weight, SCHEME)], x.T @ x / len(x), x.abs().mean(0), PLAIN_PAIR)
    assert output_error(weight, x, scales) < 0.7 * output_error(weight, x, torch.ones(96))
    assert float((scales.max() * scales.min()).sqrt()) == pytest.approx(1.0, rel=1e-4)


def test_inputs_that_are_alike_need_no_scales() -> None:
    weight, x = outlying()
    x[:, ::12] /= 30
    scales = migrate.search([(weight, SCHEME)], x.T @ x / len(x), torch.ones(96), PLAIN_PAIR)
    assert torch.allclose(scales, torch.ones(96))


def test_a_channel_that_is_never_used_does_not_spoil_the_others() -> None:
    weight, x = outlying()
    x[:, 5] = 0
    scales = migrate.search([(weight, SCHEME)], x.T @ x / len(x), x.abs().mean(0), PLAIN_PAIR)
    assert output_error(weight, x, scales) < 0.7 * output_error(weight, x, torch.ones(96))
    smoothed = migrate.smooth([weight], x.abs().amax(0), 0.5, PLAIN_PAIR)
    assert float(smoothed[::12].mean() / smoothed[6::12].mean()) > 3
    weight[:, 5] = 0  # nor one that nothing is made of
    smoothed = migrate.smooth([weight], x.abs().amax(0) + 1, 0.5, PLAIN_PAIR)
    assert float(smoothed[::12].mean() / smoothed[6::12].mean()) > 3


@pytest.mark.parametrize("exponent", [0.0, 0.3, 0.5, 1.0])
def test_smoothing_is_the_papers_equation(exponent: float) -> None:
    weight, x = outlying()
    peak = x.abs().amax(0)
    scales = migrate.smooth([weight, 2 * weight], peak, exponent, PLAIN_PAIR)
    expected = peak**exponent / (2 * weight.abs().amax(0)) ** (1 - exponent)
    ratio = scales / expected
    assert torch.allclose(ratio, ratio[0].expand(96), rtol=1e-4)
    if exponent == 1.0:  # all of the range is in the weights now
        assert torch.allclose(peak / scales, (peak / scales)[0].expand(96), rtol=1e-4)


def test_heads_of_a_group_share_their_scales() -> None:
    pair = Pair(("attention.output",), {}, (2, 3, 16))
    weight, x = outlying()
    hessian = x.T @ x / len(x)
    for scales in (
        migrate.search([(weight, SCHEME)], hessian, x.abs().mean(0), pair),
        migrate.smooth([weight], x.abs().amax(0), 0.5, pair),
    ):
        heads = scales.reshape(2, 3, 16)
        assert torch.equal(heads, heads[:, :1].expand(2, 3, 16))
        assert float(scales.std()) > 0.01


def test_scales_are_never_beyond_measure() -> None:
    weight, x = outlying()
    weight[:, 3], x[:, 7] = 0, 0
    x[:, 9] *= 1e12
    for scales in (
        migrate.search([(weight, SCHEME)], x.T @ x / len(x), x.abs().mean(0), PLAIN_PAIR),
        migrate.smooth([weight], x.abs().amax(0), 0.5, PLAIN_PAIR),
        migrate.smooth([torch.zeros(4, 96)], torch.zeros(96), 0.5, PLAIN_PAIR),
    ):
        assert scales.isfinite().all()
        assert (scales > 0).all()
        assert float(scales.max() / scales.min()) <= migrate.LARGEST_SPREAD * 1.001


def test_tiny_models_are_as_uneven_as_the_tests_need() -> None:
    norm = dict(tiny().named_parameters())["blocks.0.attention_norm.weight"]
    assert float(norm.abs().max() / norm.abs().min()) > 20
