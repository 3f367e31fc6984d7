"""Which builder reads a configuration, and what is said where none does."""

from typing import Any

import pytest

from flatlm.errors import ConfigError
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.families import FAMILIES
from flatlm.utilities.configs.registry import ConfigBuilder, find_builder


def refusal(**config: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        find_builder(ConfigReader(config, "config.json"))
    return str(caught.value)


@pytest.mark.parametrize("architecture", [name for record in FAMILIES for name in record.architectures])
def test_every_architecture_has_a_builder(architecture: str) -> None:
    builder = find_builder(ConfigReader({"architectures": [architecture]}, "config.json"))
    assert architecture in next(record for record in FAMILIES if record.name == builder.family).architectures


@pytest.mark.parametrize(
    ("architecture", "hint"),
    [
        ("LlamaForCausalLm", "did you mean LlamaForCausalLM?"),
        ("GPT2LMHeadsModel", "did you mean GPT2LMHeadModel?"),
        ("Xyz", "supported are "),
    ],
)
def test_an_unknown_architecture_hears_of_the_nearest(architecture: str, hint: str) -> None:
    assert f"architecture {architecture!r} is not supported; {hint}" in refusal(architectures=[architecture])


def test_a_known_architecture_that_no_builder_takes_is_not_told_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConfigBuilder, "condition", classmethod(lambda cls, hf_config: False))
    message = refusal(architectures=["LlamaForCausalLM"])
    assert "'LlamaForCausalLM' is supported, but not in the form that the other keys describe" in message
    assert "did you mean" not in message


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["Gemma3TextModel"], "use_bidirectional_attention": True},  # EmbeddingGemma
        {"architectures": ["MPNetForMaskedLM"]},
        {"architectures": ["CamembertForMaskedLM"]},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": ["LEDForConditionalGeneration"], "is_encoder_decoder": True},
    ],
    ids=lambda config: config["architectures"][0],
)
def test_what_generates_no_text_hears_of_what_does_and_of_the_encoders(config: dict[str, Any]) -> None:
    message = refusal(**config)
    assert "is not supported: of encoders the families bert, roberta, albert, electra, distilbert are" in message
    assert "--model FAMILY" in message
    assert "did you mean" not in message


def test_a_name_that_is_not_near_is_not_guessed() -> None:
    assert "did you mean" not in refusal(architectures=["BertLMHeadModel"])


@pytest.mark.parametrize(
    ("model_type", "family"),
    [
        *((name, name) for name in ("albert", "bart", "bert", "distilbert", "electra", "gpt2", "mbart", "mt5", "roberta", "t5")),
        ("xlm-roberta", "roberta"),
    ],
)
def test_older_configurations_name_their_model_type_alone(model_type: str, family: str) -> None:
    assert find_builder(ConfigReader({"model_type": model_type}, "config.json")).family == family
    assert "not supported" in refusal(model_type=model_type, architectures=["Other"])


def test_a_model_type_that_is_not_enough_hears_of_the_option() -> None:
    assert "names no architecture: add --model llama" in refusal(model_type="llama")
