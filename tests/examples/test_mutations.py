"""The parity suite fails for a wrong map: whatever is changed in a family's names or configuration is refused, or seen in the logits."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flatlm.errors import CheckpointError
from flatlm.layers.config import Activation, ModelConfig, NormKind
from flatlm.utilities import example
from flatlm.utilities.configs.registry import build_config
from flatlm.utilities.kinds import decoder
from flatlm.utilities.reading import Reading
from flatlm.utilities.weights.slots import Slot
from flatlm.utilities.weights.tensor_names import TensorNames
from tests.examples.cases import ALL
from tests.examples.conftest import Reference
from tests.examples.test_parity import TOLERANCE, eager_error

CASES = {str(case): case for case in ALL}
Slots = dict[str, Slot]
"""A plan's slots by their parameters."""


def unchanged(given: Any) -> Any:
    return given


@dataclass(frozen=True)
class Mutation:
    """A mistake in what is read by; a slot is changed where names and configuration cannot say it."""

    config: Callable[[ModelConfig], ModelConfig] = unchanged
    names: Callable[[TensorNames], TensorNames] = unchanged
    slots: Callable[[Slots], Slots] = unchanged

    def apply(self, monkeypatch: pytest.MonkeyPatch, kind: Any = decoder, planner: str = "model_slots") -> None:
        """`kind`: the module of the kind of model; `planner`: what lists the slots there."""
        slots = getattr(kind, planner)

        def built(directory: Path, reading: Reading) -> tuple[Any, Any]:
            config, builder = build_config(directory, reading)
            return self.config(config), SimpleNamespace(tensor_names=self.names(builder.tensor_names))

        def planned(*given: Any) -> list[Slot]:
            return list(self.slots({slot.name: slot for slot in slots(*given)}).values())

        monkeypatch.setattr(example, "build_config", built)
        monkeypatch.setattr(kind, planner, planned)


def put(path: str, new: Any) -> Mutation:
    """Another value at a path into the configuration, in every block; or a function of the old one, where there is one."""
    return Mutation(config=lambda config: _put(config, path.split("."), new))


def _put(record: Any, path: list[str], new: Any) -> Any:
    if isinstance(record, tuple):
        return tuple(_put(item, path, new) for item in record)
    if record is None:
        return None
    if not path:
        return new(record) if callable(new) else new
    inner = getattr(record, path[0])
    return replace(record, **{path[0]: _put(inner, path[1:], new) if path[1:] or callable(new) else new})


def name(**fields: Any) -> Mutation:
    return Mutation(names=lambda names: replace(names, **fields))


def swap(first: str, second: str) -> Mutation:
    """Two names, each for what the other is."""
    return Mutation(names=lambda names: replace(names, **{first: getattr(names, second), second: getattr(names, first)}))


def swap_slots(first: str, second: str) -> Mutation:
    """The tensors of two parts of the model, each for the other's parameters."""

    def swapped(slots: Slots) -> Slots:
        partners = {**slots}
        for own in slots:
            if first in own:
                partner = own.replace(first, second)
                partners[own], partners[partner] = replace(slots[partner], name=own), replace(slots[own], name=partner)
        return partners

    return Mutation(slots=swapped)


def change_parts(fragment: str, change: Callable[[Any], Any]) -> Mutation:
    """Every part of the parameters that have this in their names."""
    return Mutation(
        slots=lambda slots: {
            own: replace(slot, parts=tuple(map(change, slot.parts))) if fragment in own else slot for own, slot in slots.items()
        }
    )


def swap_rows(fragment: str, order: tuple[int, ...]) -> Mutation:
    """The rows of a fused projection, cut into equal pieces, in another order of pieces."""

    def reordered(part: Any) -> Any:
        pieces = np.split(np.arange(part.taken[0]) if part.rows is None else part.rows, len(order))
        return replace(part, rows=np.concatenate([pieces[i] for i in order]))

    return change_parts(fragment, reordered)


def more(by: float) -> Callable[[float], float]:
    return lambda value: value + by


def times(by: float) -> Callable[[float], float]:
    return lambda value: value * by


SEEN: dict[str, tuple[Mutation, str]] = {
    # names
    "query and key swapped": (swap("attn_query_proj", "attn_key_proj"), "llama-llama2 stablelm-3b olmo2-7b"),
    "query and key of a fused one swapped": (swap_rows("attention.qkv", (1, 0, 2)), "gpt2-as_published phi3-no_groups"),
    "key and value swapped": (swap("attn_key_proj", "attn_value_proj"), "llama-grouped_queries opt-as_published phi-plain"),
    "gate and up swapped": (swap("ff_gate_proj", "ff_up_proj"), "llama-grouped_queries gemma-plain"),
    "gate and up of a fused one swapped": (swap_rows("gate_up", (1, 0)), "phi3-plain glm-plain granite_moe-plain"),
    "an expert's gate and up swapped": (swap("expert_gate_proj", "expert_up_proj"), "mixtral-four_experts"),
    "the two norms swapped": (swap("pre_attn_norm", "pre_ff_norm"), "llama-grouped_queries gpt_neox-pythia opt-as_published falcon-40b"),
    "the two later norms swapped": (swap("post_attn_norm", "post_ff_norm"), "gemma2-plain glm4-plain olmo2-7b"),
    "earlier and later norm swapped": (swap("pre_ff_norm", "post_attn_norm"), "gemma2-plain gemma3-plain"),
    "query and key norm swapped": (
        swap("attn_query_norm", "attn_key_norm"),
        "qwen3-plain gemma3-plain olmo2-7b phi-normalised_queries_and_keys",
    ),
    "two blocks swapped": (swap_slots("blocks.0.", "blocks.1."), "llama-grouped_queries gpt2-as_published"),
    "two experts swapped": (swap_slots("experts.0.", "experts.1."), "mixtral-four_experts granite_moe-plain olmoe-plain qwen3_moe-plain"),
    "a square matrix not transposed": (
        change_parts("attention.output.weight", lambda part: replace(part, transposed=False)),
        "gpt2-as_published",
    ),
    "heads not grouped": (name(grouped_qkv=False), "gpt_neox-pythia falcon-rw falcon-40b"),
    "heads grouped": (name(grouped_qkv=True), "gpt2-as_published phi3-plain"),
    "rope not in pairs": (name(interleaved_rope=False), "glm-plain glm4-plain ernie4_5-plain"),
    "rope in pairs": (name(interleaved_rope=True), "llama-grouped_queries phi-plain olmo2-7b"),
    "norms not offset": (name(norm_offset=0.0), "gemma-plain gemma2-plain gemma3-plain"),
    "norms offset": (name(norm_offset=1.0), "llama-grouped_queries"),
    # attention
    "rope base one more": (
        put("blocks.attention.rope.base", more(1)),
        "gpt_neox-whole_heads_turn falcon-7b_rope_base stablelm-rope_base granite-linear_rope ernie4_5-linear_rope phi-linear_rope",
    ),
    "one kind of block's rope base one more": (put("blocks.attention.rope.base", lambda base: base + (base == 300)), "gemma3-own_bases"),
    "the other kind's": (put("blocks.attention.rope.base", lambda base: base + (base == 70)), "gemma3-own_bases"),
    "rope not scaled": (
        put("blocks.attention.rope.scaling", None),
        "llama-linear_rope_scaling llama-llama3_rope_scaling llama-yarn_rope_scaling phi3-long_longrope gemma3-scaled_rope",
    ),
    "whole heads turn": (put("blocks.attention.rope.rotary_dim", None), "gpt_neox-pythia glm-quarter_turns stablelm-3b phi-plain"),
    "two entries more turn": (put("blocks.attention.rope.rotary_dim", more(2)), "gpt_neox-pythia glm-quarter_turns phi3-partial"),
    "window one more": (put("blocks.attention.mask.window", more(1)), "mistral-window gemma2-plain gemma3-plain olmo3-7b phi3-window"),
    "window one less": (put("blocks.attention.mask.window", more(-1)), "mistral-window qwen2-windows"),
    "no window": (put("blocks.attention.mask.window", None), "mixtral-window smollm3-windows"),
    "ALiBi not rounded": (put("blocks.attention.mask.alibi_rounded_scale", None), "falcon-rw_heads_no_power_of_two"),
    "ALiBi's slopes one head on": (put("blocks.attention.mask.alibi_slopes", times(0.5)), "falcon-rw"),
    "scores not scaled": (
        put("blocks.attention.scale", None),
        "gemma2-scale gemma3-scale granite-attention_multiplier gpt2-unscaled_scores",
    ),
    "scores not capped": (put("blocks.attention.softcap", None), "gemma2-small_caps gemma2-only_scores_capped gemma2-plain"),
    "not clipped": (put("blocks.attention.clip", None), "olmo-7b_clipped olmoe-clipped"),
    # feed-forward
    "the exact GELU": (put("blocks.feed_forward.activation", Activation.GELU), "gpt2-as_published gemma-plain phi-plain"),
    "the approximate GELU": (put("blocks.feed_forward.activation", Activation.GELU_TANH), "llama-gelu gpt_neox-pythia falcon-7b"),
    "one expert more": (put("blocks.feed_forward.experts_per_token", more(1)), "mixtral-four_experts qwen3_moe-plain granite_moe-plain"),
    "one expert less": (put("blocks.feed_forward.experts_per_token", more(-1)), "mixtral-four_experts olmoe-plain"),
    "the other renormalisation": (
        put("blocks.feed_forward.renormalize", lambda on: not on),
        "mixtral-four_experts qwen3_moe-plain qwen3_moe-renormalized olmoe-plain granite_moe-plain",
    ),
    # blocks and model
    "branches one after the other": (put("blocks.parallel", False), "gpt_neox-pythia stablelm-2_12b falcon-40b phi-plain falcon-falcon2"),
    "branches side by side": (put("blocks.parallel", True), "gpt_neox-sequential llama-grouped_queries falcon-7b_sequential"),
    "branches not scaled": (put("blocks.residual_scale", 1.0), "granite-residual_multiplier granite_moe-multipliers"),
    "embedding not scaled": (put("embedding_scale", 1.0), "gemma-plain gemma2-plain gemma3-plain granite-embedding_multiplier"),
    "logits not scaled": (put("logit_scale", 1.0), "granite-logits_scaling granite_moe-multipliers"),
    "logits not capped": (put("logit_softcap", None), "gemma2-plain gemma2-small_caps gemma2-only_logits_capped gemma3-capped_logits"),
    "positions one less": (put("position_embedding.offset", more(-1)), "opt-as_published"),
    "positions one more": (put("position_embedding.offset", more(1)), "gpt2-as_published"),
    "a layer norm is an RMS norm": (put("blocks.attention_norm.kind", NormKind.RMS), "olmo-1b opt-bare_norms"),
    "head tied": (put("tied_head", True), "llama-grouped_queries gpt2-untied_head"),
    "eps of attention's norm": (put("blocks.attention_norm.eps", times(10)), "llama-eps gpt_neox-eps falcon-eps gemma-eps glm-eps phi-eps"),
    "eps of attention's usual norm": (put("blocks.attention_norm.eps", times(10)), "llama-grouped_queries gpt2-as_published"),
    "eps of feed-forward's norm": (put("blocks.feed_forward_norm.eps", times(10)), "llama-eps gpt2-eps granite-eps phi3-eps"),
    "eps of attention's later norm": (put("blocks.attention_post_norm.eps", times(10)), "gemma2-eps olmo2-eps glm4-eps"),
    "eps of feed-forward's later norm": (put("blocks.feed_forward_post_norm.eps", times(10)), "gemma3-eps"),
    "eps of queries' and keys' norm": (put("blocks.attention.qk_norm.norm.eps", times(10)), "gemma3-eps olmo2-eps"),
    "eps of the last norm": (put("final_norm.eps", times(10)), "llama-eps stablelm-eps ernie4_5-eps"),
}
REFUSED: dict[str, tuple[Mutation, str]] = {
    "query and key of other sizes swapped": (swap("attn_query_proj", "attn_key_proj"), "llama-grouped_queries"),
    "up and down swapped": (swap("ff_up_proj", "ff_down_proj"), "llama-grouped_queries gpt2-inner_width"),
    "matrices not transposed": (name(transposed=False), "gpt2-as_published"),
    "matrices transposed": (name(transposed=True), "llama-grouped_queries"),
    "no qkv bias": (put("blocks.attention.qkv_bias", False), "llama-biases qwen2-plain gpt2-as_published gpt_neox-pythia glm-plain"),
    "no output bias": (put("blocks.attention.output_bias", False), "llama-biases opt-as_published falcon-rw phi-plain"),
    "no feed-forward bias": (put("blocks.feed_forward.bias", False), "llama-biases granite-only_feed_forward_biases"),
    "no head bias": (put("head_bias", False), "phi-plain"),
    "no norm bias": (put("blocks.attention_norm.bias", False), "gpt2-as_published stablelm-3b"),
    "no norm weight": (put("final_norm.weight", False), "llama-grouped_queries"),
    "a norm left out": (put("blocks.attention_post_norm", None), "gemma2-plain olmo2-7b glm4-plain"),
    "no query and key norm": (put("blocks.attention.qk_norm", None), "qwen3-plain gemma3-plain olmo2-7b stablelm-2_12b olmoe-plain"),
    "no positions": (put("position_embedding", None), "gpt2-as_published"),
    "an expert left out": (put("blocks.feed_forward.num_experts", more(-1)), "mixtral-four_experts granite_moe-plain"),
    "a block left out": (Mutation(config=lambda config: replace(config, blocks=config.blocks[1:])), "llama-grouped_queries"),
    "head not tied": (put("tied_head", False), "gemma-plain"),
}


def each(mutations: dict[str, tuple[Mutation, str]]) -> list[Any]:
    return [
        pytest.param(mutation, case, id=f"{what}-{case}".replace(" ", "_"))
        for what, (mutation, cases) in mutations.items()
        for case in cases.split()
    ]


Error = Callable[[Mutation, str], float]


@pytest.fixture
def error(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> Error:
    """The parity suite's error of a case whose map is mutated."""

    def measured(mutation: Mutation, case: str) -> float:
        mutation.apply(monkeypatch)
        return eager_error(*reference(CASES[case]), steps=([40],))

    return measured


@pytest.mark.parametrize("case", sorted({case for _, cases in (*SEEN.values(), *REFUSED.values()) for case in cases.split()}))
def test_what_is_not_mutated_passes(error: Error, case: str) -> None:
    assert error(Mutation(), case) <= TOLERANCE


@pytest.mark.parametrize(("mutation", "case"), each(SEEN))
def test_a_mutation_is_seen(error: Error, mutation: Mutation, case: str) -> None:
    assert error(mutation, case) > TOLERANCE


@pytest.mark.parametrize(("mutation", "case"), each(REFUSED))
def test_a_mutation_is_refused(error: Error, mutation: Mutation, case: str) -> None:
    with pytest.raises(CheckpointError):
        error(mutation, case)
