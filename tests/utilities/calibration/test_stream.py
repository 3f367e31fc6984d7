"""A model run block by block is the model; what its projections are seen to read is what they read."""

import pytest
import torch
from torch import Tensor

from flatlm.convert.in_memory import InMemory
from flatlm.errors import CheckpointError
from flatlm.layers.config import ModelConfig
from flatlm.layers.kv_cache import empty_caches
from flatlm.layers.mixture import Mixture
from flatlm.layers.model import Decoder
from flatlm.utilities.calibration.statistics import gather
from flatlm.utilities.calibration.stream import ROWS_AT_ONCE, ModelStream, linears, row_slices
from tests.utilities.calibration.models import TOKENS, family, logits, other_padding, random_text, random_tokens, sources_of, tiny

FAMILIES = [
    "llama-grouped_queries",
    "llama-biases",
    "gemma-plain",
    "gemma2-small_caps",
    "gemma3-plain",
    "mistral-window",
    "gpt2-as_published",
    "gpt_neox-pythia",
    "opt-as_published",
    "opt-bare_norms",
    "phi-normalised_queries_and_keys",
    "falcon-rw",
    "falcon-40b_alibi",
    "mixtral-four_experts",
    "olmoe-clipped",
    "granite-multipliers",
    "olmo2-biases",
]


def streamed(stream: ModelStream, tokens: Tensor) -> list[Tensor]:
    """What each block reads, and what the last one gives."""
    states = [stream.embed(tokens)]
    for layer in range(len(stream.config.blocks)):
        states.append(stream.run(stream.block(layer), states[-1]))
    return states


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_block_by_block_is_the_model(name: str) -> None:
    model = family(name)
    tokens = random_tokens(model.config, 2 * ROWS_AT_ONCE - 1)
    stream = ModelStream(model.config, sources_of(model), TOKENS)
    final = torch.cat(list(stream.head_inputs(streamed(stream, tokens)[-1])))
    found = model.lm_head(final) * model.config.logit_scale
    if (cap := model.config.logit_softcap) is not None:
        found = torch.tanh(found / cap) * cap
    expected = logits(model, tokens)
    assert float(expected.std()) > 0.05
    assert float((found - expected).abs().max()) <= 2e-5 * max(1.0, float(expected.abs().max()))


def eager_inputs(model: Decoder, tokens: Tensor) -> dict[str, Tensor]:
    """What every projection of the blocks reads, by its weight's name without the suffix."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen.__setitem__(name, inputs[0]))
        for name, module in linears(model).items()
    ]
    logits(model, tokens)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", ["llama-biases", "falcon-40b", "gpt2-as_published", "gemma2-plain", "olmo2-biases"])
@torch.inference_mode()
def test_inputs_are_what_hooks_on_the_model_see(name: str) -> None:
    model = family(name)
    tokens = random_tokens(model.config, 2 * ROWS_AT_ONCE - 1)
    expected = eager_inputs(model, tokens)
    stream = ModelStream(model.config, sources_of(model), TOKENS)
    for layer, x in enumerate(streamed(stream, tokens)[:-1]):
        block = stream.block(layer)
        for names in (["attention.qkv"], ["attention.output", "feed_forward.down"], list(linears(block))):
            pieces = list(stream.inputs(block, x, names))
            assert [len(piece[names[0]]) for piece in pieces] == [ROWS_AT_ONCE, ROWS_AT_ONCE - 1]
            for projection in names:
                found = torch.cat([piece[projection] for piece in pieces])
                wanted = expected[f"blocks.{layer}.{projection}"]
                assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
        assert not any(module._forward_pre_hooks for module in block.modules())  # none is left behind


def test_a_block_runs_no_further_than_it_must() -> None:
    model = tiny()
    stream = ModelStream(model.config, sources_of(model), TOKENS)
    block = stream.block(0)
    block.feed_forward.down.register_forward_pre_hook(lambda *_: pytest.fail("it ran on"))
    next(stream.inputs(block, torch.randn(2, TOKENS, 64), ["feed_forward.gate_up"]))


@pytest.mark.parametrize("name", ["mixtral-four_experts", "qwen3_moe-plain"])
@torch.inference_mode()
def test_experts_inputs_are_scaled_by_what_they_count(name: str) -> None:
    model = family(name)
    tokens = random_tokens(model.config, 3)
    expected = eager_inputs(model, tokens)
    stream = ModelStream(model.config, sources_of(model), TOKENS)
    x = stream.embed(tokens)
    block = stream.block(0)
    assert isinstance(block.feed_forward, Mixture)
    names = [projection for projection in linears(block) if projection.startswith("feed_forward.")]
    (found,) = stream.inputs(block, x, names)
    router = expected["blocks.0.feed_forward.router"]
    shares = block.feed_forward.weights(router)
    assert torch.allclose(found["feed_forward.router"], router, atol=1e-5)
    for expert in range(block.feed_forward.config.num_experts):
        for projection in ("gate_up", "down"):
            at = f"feed_forward.experts.{expert}.{projection}"
            assert torch.allclose(found[at], expected[f"blocks.0.{at}"] * shares[..., expert, None], rtol=1e-4, atol=1e-5)
            left_out = shares[..., expert] == 0
            assert left_out.any()
            assert not found[at][left_out].any()


@torch.inference_mode()
def test_padding_changes_no_statistics() -> None:
    model = tiny(window=5)
    text = random_text(model.config)
    found = []
    for each in (text, other_padding(text)):
        assert torch.equal(each.valid.sum(1), text.lengths)
        stream = ModelStream(model.config, sources_of(model), TOKENS)
        x = streamed(stream, each.tokens)[1]
        found.append(gather(stream, stream.block(1), x, list(linears(stream.block(1))), each.valid, (stream.block(1), x + 0.1)))
    assert not torch.equal(text.tokens, other_padding(text).tokens)
    for name, statistics in found[0].items():
        assert statistics.count == text.count() == int(text.lengths.sum())
        assert torch.equal(statistics.hessian, found[1][name].hessian)
        assert torch.equal(statistics.missing, found[1][name].missing)
        assert torch.equal(statistics.size, found[1][name].size)
        assert torch.equal(statistics.peak, found[1][name].peak)


@torch.inference_mode()
def test_statistics_are_what_they_are_called() -> None:
    model = tiny()
    text = random_text(model.config)
    stream = ModelStream(model.config, sources_of(model), TOKENS)
    x = stream.embed(text.tokens)
    block, other = stream.block(0), stream.block(0)
    other.attention_norm.weight.data = other.attention_norm.weight * 1.5
    found = gather(stream, block, x, ["attention.qkv"], text.valid, (other, x))["attention.qkv"]
    read, exact = (
        torch.cat([p["attention.qkv"] for p in stream.inputs(each, x, ["attention.qkv"])])[text.valid] for each in (block, other)
    )
    assert torch.allclose(found.hessian, read.T @ read / len(read), rtol=1e-4, atol=1e-5)
    assert torch.allclose(found.missing, (exact - read).T @ read / len(read), rtol=1e-4, atol=1e-5)
    assert torch.allclose(found.size, read.abs().mean(0))
    assert torch.equal(found.peak, read.abs().amax(0))


class Counted(InMemory):
    """Which rows were asked for."""

    def __init__(self, values: Tensor) -> None:
        super().__init__(values)
        object.__setattr__(self, "asked", [])

    def rows(self, start: int, stop: int) -> Tensor:
        self.asked.append((start, stop))
        return super().rows(start, stop)


def test_only_the_rows_that_occur_are_read() -> None:
    model = tiny()
    sources = {name: Counted(source.values) for name, source in sources_of(model).items()}
    stream = ModelStream(model.config, sources, 6)
    tokens = torch.tensor([[7, 8, 9, 50, 8, 7], [90, 9, 8, 50, 50, 9]], dtype=torch.int32)
    x = stream.embed(tokens)
    assert sources["embedding.weight"].asked == [(7, 10), (50, 51), (90, 91)]
    assert torch.equal(x, model.embedding(tokens))
    assert all(not source.asked for name, source in sources.items() if name != "embedding.weight")


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = tiny()

    class Broken(InMemory):
        def origin(self, row: int) -> str:
            return f"model.safetensors: tensor x, {row}"

    for name, use in {
        "embedding.weight": lambda stream: stream.embed(torch.tensor([[1, 2, 3, 9]])),
        "blocks.1.attention.qkv.weight": lambda stream: stream.block(1),
        "blocks.0.attention_norm.weight": lambda stream: stream.block(0),
        "final_norm.weight": lambda stream: next(stream.head_inputs(torch.zeros(1, 4, 64))),
    }.items():
        values = sources_of(model)[name].values.clone()
        values[3] = torch.nan
        with pytest.raises(CheckpointError, match=r"tensor x, 3 holds NaN or infinity"):
            use(ModelStream(model.config, {**sources_of(model), name: Broken(values)}, 4))


def test_rows_are_taken_some_at_a_time() -> None:
    assert [len(range(9)[rows]) for rows in row_slices(9)] == [ROWS_AT_ONCE, ROWS_AT_ONCE, 1]
    assert list(row_slices(0)) == []


def test_a_row_may_be_shorter_than_the_context() -> None:
    model = family("mistral-window")
    assert isinstance(model.config, ModelConfig)
    tokens = random_tokens(model.config, 1, 5)
    stream = ModelStream(model.config, sources_of(model), 5)
    out = streamed(stream, tokens)[-1]
    with torch.inference_mode():
        caches = empty_caches(model.config, model.geometry)
        expected, _ = model(tokens, torch.arange(5, dtype=torch.int32), caches)
        assert torch.allclose(model.lm_head(next(stream.head_inputs(out))), expected, atol=1e-5)
