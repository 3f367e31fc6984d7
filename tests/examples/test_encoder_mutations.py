"""The encoders' parity suite fails for a wrong map: whatever is changed in a family's names or configuration is refused, or seen."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from flatlm.errors import CheckpointError
from flatlm.layers.config import Activation, NormKind
from flatlm.utilities.kinds import encoder
from tests.examples.cases.encoders import CASES
from tests.examples.conftest import Reference
from tests.examples.test_encoder_parity import TOLERANCE, eager_error
from tests.examples.test_mutations import Mutation, each, more, name, put, swap, swap_slots, times

BY_NAME = {str(case): case for case in CASES}


def head(**fields: Any) -> Mutation:
    """Other names in every head; a function makes one from the head."""

    def changed(own: Any) -> Any:
        return replace(own, **{field: value(own) if callable(value) else value for field, value in fields.items()})

    return Mutation(names=lambda names: replace(names, heads=tuple(map(changed, names.heads))))


SEEN: dict[str, tuple[Mutation, str]] = {
    "query and key swapped": (
        swap("attn_query_proj", "attn_key_proj"),
        "bert-features roberta-masked_lm distilbert-features",
    ),
    "key and value swapped": (swap("attn_key_proj", "attn_value_proj"), "bert-features electra-features albert-two_groups"),
    "the two norms swapped": (swap("pre_attn_norm", "pre_ff_norm"), "bert-features roberta-features albert-features"),
    "two blocks swapped": (swap_slots("blocks.0.", "blocks.1."), "bert-features albert-two_groups distilbert-features"),
    "two blocks of a group swapped": (swap_slots("blocks.2.", "blocks.3."), "albert-blocks_in_a_group"),
    "norms before": (put("blocks.norm_after", False), "bert-features albert-features distilbert-features"),
    "no token types": (
        Mutation(
            config=lambda config: replace(config, token_types=0),
            names=lambda names: replace(names, ignored=(*names.ignored, "*token_type_embeddings.weight")),
        ),
        "bert-features roberta-features albert-features electra-features bert-one_token_type",
    ),
    "positions that do not count": (put("positions.padding_id", None), "roberta-features roberta-padding_id_5 roberta-xlm_features"),
    "positions from one on": (put("positions.padding_id", 0), "bert-features distilbert-features albert-features"),
    "positions from the next on": (put("positions.padding_id", more(-1)), "roberta-features roberta-padding_id_5"),
    "another block for every layer": (
        Mutation(config=lambda config: replace(config, layers=config.layers[::-1])),
        "bert-features albert-two_groups albert-uneven_groups albert-blocks_in_a_group",
    ),
    "groups by turns": (
        Mutation(config=lambda config: replace(config, layers=tuple(i % len(config.blocks) for i in range(len(config.layers))))),
        "albert-two_groups albert-uneven_groups",
    ),
    "one layer less": (Mutation(config=lambda config: replace(config, layers=config.layers[1:])), "albert-features bert-features"),
    "the approximate GELU": (put("blocks.feed_forward.activation", Activation.GELU_TANH), "bert-features roberta-features"),
    "the exact GELU": (put("blocks.feed_forward.activation", Activation.GELU), "albert-features bert-gelu_new"),
    "another activation in the head": (
        put("head.activation", Activation.SILU),
        "bert-masked_lm roberta-relu_body electra-relu_body distilbert-masked_lm albert-masked_lm electra-discriminator",
    ),
    "another pooler": (put("head.pooler.activation", Activation.GELU), "bert-features bert-classification distilbert-classification"),
    "a tanh before ELECTRA's labels": (put("head.pooler.activation", Activation.TANH), "electra-classification"),
    "eps of attention's norm": (put("blocks.attention_norm.eps", times(10)), "bert-eps"),
    "eps of feed-forward's norm": (put("blocks.feed_forward_norm.eps", times(10)), "bert-eps"),
    "eps of the embedding's norm": (put("embedding_norm.eps", times(10)), "bert-eps"),
    "eps of the head's norm": (put("head.norm.eps", times(10)), "bert-eps_of_the_head"),
    "a layer norm is an RMS norm": (put("embedding_norm.kind", NormKind.RMS), "bert-features"),
    "fewer heads": (
        put("blocks.attention", lambda old: replace(old, num_query_heads=2, num_kv_heads=2, head_dim=16)),
        "bert-features albert-features",
    ),
    "the decoder not tied": (put("head.tied", True), "bert-untied roberta-untied albert-untied electra-untied distilbert-untied"),
}
REFUSED: dict[str, tuple[Mutation, str]] = {
    "embedding's norm for a block's": (name(embedding_norm="encoder.layer.0.output.LayerNorm"), "bert-features"),
    "up and down swapped": (swap("ff_up_proj", "ff_down_proj"), "bert-features albert-features distilbert-features"),
    "another token type": (put("token_types", more(1)), "bert-features"),
    "a token type for those who have none": (put("token_types", more(1)), "distilbert-features"),
    "positions one less": (put("positions.rows", more(-1)), "bert-features roberta-features"),
    "not projected": (put("projected", False), "albert-features electra-features"),
    "another label": (put("head.labels", more(1)), "bert-classification bert-token_classification bert-regression"),
    "no pooler": (head(dense=None), "bert-classification roberta-classification"),
    "untied": (put("head.tied", False), "bert-masked_lm"),
    "a block left out": (Mutation(config=lambda c: replace(c, blocks=c.blocks[1:], layers=c.layers[:-1])), "distilbert-features"),
    "no bias": (put("blocks.attention.qkv_bias", False), "bert-features"),
    "another head's output": (head(output="classifier"), "roberta-classification electra-discriminator"),
}
Error = Callable[[Mutation, str], float]


@pytest.fixture
def error(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> Error:
    """The parity suite's error of a case whose map is mutated."""

    def measured(mutation: Mutation, case: str) -> float:
        mutation.apply(monkeypatch, encoder, "encoder_slots")
        return eager_error(*reference(BY_NAME[case]))

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
