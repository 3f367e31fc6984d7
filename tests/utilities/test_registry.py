"""Which builder reads a configuration, and what is said where none does."""

from typing import Any

import pytest

from flatlm.errors import ConfigError
from flatlm.utilities.config_reader import ConfigReader
from flatlm.utilities.registry import FAMILIES, ConfigBuilder, find_builder


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
        {"architectures": ["LlamaForSequenceClassification"]},
        {"architectures": ["LEDForConditionalGeneration"], "is_encoder_decoder": True},
    ],
    ids=lambda config: config["architectures"][0],
)
def test_what_generates_no_text_is_refused_as_such(config: dict[str, Any]) -> None:
    message = refusal(**config)
    assert "is not a decoder for text generation" in message
    assert "not supported yet" in message
    assert "did you mean" not in message
