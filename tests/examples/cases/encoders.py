"""BERT, RoBERTa, ALBERT, ELECTRA, DistilBERT: every head, every key on and off."""

from dataclasses import replace

from tests.examples.references import Case, Family

SHARED = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
}
THREE = {"id2label": {0: "low", 1: "middle", 2: "high"}, "label2id": {"low": 0, "middle": 1, "high": 2}}
DISTIL = {"vocab_size": 120, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 24}
GROUPS = {**SHARED, "embedding_size": 16}


def heads(prefix: str) -> dict[str, Family]:
    """A family for each of the classes that begin so, by the end of its name."""
    name, base = {
        "Bert": ("bert", SHARED),
        "Roberta": ("roberta", SHARED),
        "XLMRoberta": ("roberta", SHARED),
        "Albert": ("albert", GROUPS),
        "Electra": ("electra", GROUPS),
        "DistilBert": ("distilbert", DISTIL),
    }[prefix]
    endings = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForPreTraining")
    return {ending: Family(name, prefix + ending, base) for ending in endings}


BERT, ROBERTA, XLM_ROBERTA, ALBERT, ELECTRA, DISTILBERT = map(heads, ("Bert", "Roberta", "XLMRoberta", "Albert", "Electra", "DistilBert"))


def every_head(family: dict[str, Family], label: str = "") -> list[Case]:
    return [
        family["Model"].case(f"{label}features"),
        family["ForMaskedLM"].case(f"{label}masked_lm"),
        family["ForSequenceClassification"].case(f"{label}classification", **THREE),
        family["ForTokenClassification"].case(f"{label}token_classification", **THREE),
        family["ForQuestionAnswering"].case(f"{label}question_answering"),
    ]


EXPORTED = (
    "bert-features",
    "bert-masked_lm",
    "bert-classification",
    "bert-token_classification",
    "bert-question_answering",
    "bert-regression",
    "roberta-masked_lm",
    "roberta-classification",
    "roberta-padding_id_5",
    "albert-masked_lm",
    "albert-classification",
    "albert-blocks_in_a_group",
    "electra-masked_lm",
    "electra-classification",
    "electra-discriminator",
    "distilbert-masked_lm",
    "distilbert-classification",
    "distilbert-token_classification",
)
"""Also run as exported files."""
_CASES = [
    *every_head(BERT),
    BERT["ForPreTraining"].case("pretraining"),
    BERT["Model"].case("one_token_type", type_vocab_size=1),
    BERT["Model"].case("four_token_types", type_vocab_size=4),
    BERT["Model"].case("eps", layer_norm_eps=1e-2),
    BERT["Model"].case("relu", hidden_act="relu"),
    BERT["Model"].case("gelu_new", hidden_act="gelu_new"),
    BERT["ForMaskedLM"].case("silu_head", hidden_act="silu"),
    BERT["ForMaskedLM"].case("eps_of_the_head", layer_norm_eps=1e-2),
    BERT["ForMaskedLM"].case("untied", tie_word_embeddings=False),
    BERT["ForSequenceClassification"].case("two_labels"),
    BERT["ForSequenceClassification"].case("regression", num_labels=1, problem_type="regression"),
    BERT["ForSequenceClassification"].case("many_labels_at_once", **THREE, problem_type="multi_label_classification"),
    BERT["Model"].case("one_head", num_attention_heads=1),
    *every_head(ROBERTA),
    ROBERTA["Model"].case("one_token_type", type_vocab_size=1),
    ROBERTA["Model"].case("padding_id_5", pad_token_id=5, max_position_embeddings=26),
    ROBERTA["Model"].case("padding_id_0", pad_token_id=0),
    ROBERTA["ForMaskedLM"].case("untied", tie_word_embeddings=False),
    ROBERTA["ForMaskedLM"].case("relu_body", hidden_act="relu"),
    *every_head(XLM_ROBERTA, "xlm_"),
    *every_head(ALBERT),
    ALBERT["ForPreTraining"].case("pretraining"),
    ALBERT["Model"].case("two_groups", num_hidden_layers=4, num_hidden_groups=2),
    ALBERT["Model"].case("uneven_groups", num_hidden_layers=5, num_hidden_groups=3),
    ALBERT["Model"].case("a_group_a_layer", num_hidden_groups=3),
    ALBERT["Model"].case("blocks_in_a_group", num_hidden_layers=4, num_hidden_groups=2, inner_group_num=2),
    ALBERT["Model"].case("as_wide_as_the_model", embedding_size=32),
    ALBERT["Model"].case("gelu", hidden_act="gelu"),
    ALBERT["ForMaskedLM"].case("relu_head", hidden_act="relu"),
    ALBERT["ForMaskedLM"].case("untied", tie_word_embeddings=False),
    *every_head(ELECTRA),
    ELECTRA["ForPreTraining"].case("discriminator"),
    ELECTRA["ForPreTraining"].case("relu_discriminator", hidden_act="relu"),
    ELECTRA["Model"].case("as_wide_as_the_model", embedding_size=32),
    ELECTRA["ForMaskedLM"].case("untied", tie_word_embeddings=False),
    ELECTRA["ForMaskedLM"].case("relu_body", hidden_act="relu"),
    *every_head(DISTILBERT),
    DISTILBERT["Model"].case("sinusoids", sinusoidal_pos_embds=True),
    DISTILBERT["Model"].case("relu", activation="relu"),
    DISTILBERT["ForMaskedLM"].case("relu_head", activation="relu"),
    DISTILBERT["ForMaskedLM"].case("untied", tie_word_embeddings=False),
]
CASES = [replace(case, exported=str(case) in EXPORTED) for case in _CASES]
