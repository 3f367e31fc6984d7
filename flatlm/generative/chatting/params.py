"""What of an answer's writing can be changed in a conversation, by name, and as text."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flatlm.errors import RuntimeFileError
from flatlm.generative.generation_config import GenerationConfig

PARAMS = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop",
    "ignore_eos",
)
"""Fields of `GenerationConfig`."""


def params_of(config: GenerationConfig) -> dict[str, Any]:
    """As JSON has them."""
    return {name: list(value) if isinstance(value := getattr(config, name), tuple) else value for name in PARAMS}


def with_params(config: GenerationConfig, params: Mapping[str, Any]) -> GenerationConfig:
    """With these, as JSON has them, in the place of its own. Raises RuntimeFileError, which names the one that is not possible."""
    if unknown := [name for name in params if name not in PARAMS]:
        raise RuntimeFileError(f"there is no parameter {unknown[0]!r}; there are {', '.join(PARAMS)}")
    for name, value in params.items():
        texts = [text for text in (value if isinstance(value, list | tuple) else [value]) if isinstance(text, str)]
        if any("\ud800" <= character <= "\udfff" for character in "".join(texts)):
            raise RuntimeFileError(f"{name} is not valid Unicode; give UTF-8")
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in params.items()}
    return replace(config, **values)


def read_param(name: str, text: str) -> Any:
    """A parameter's value as somebody types it: `none`, a number, true or false; `stop` is one text, or a JSON list of them."""
    if text.lower() == "none":
        return [] if name == "stop" else None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    return [text] if name == "stop" and not isinstance(value, list) else value
