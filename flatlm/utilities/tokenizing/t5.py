"""How T5's and mT5's SentencePiece model, `spiece.model`, is used, which the file does not say.

Texts end with </s>, and sentinels <extra_id_0> to <extra_id_99> follow the pieces, the last one first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flatlm.errors import TokenizerError
from flatlm.utilities.tokenizing.settings import AddedToken, TokenizerSettings, read_json

SENTINELS = 100
_CLASSES = ("T5Tokenizer", "T5TokenizerFast", "MT5Tokenizer", "MT5TokenizerFast")
_MODELS = ("t5", "mt5", "umt5")
_NAMED = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def is_t5(path: Path, config: Mapping[str, Any]) -> bool:
    """Whether the file is such a model: by the tokenizer's class, or where none is declared by the type of the model beside it."""
    declared = config.get("tokenizer_class")
    if declared is not None:
        return declared in _CLASSES
    return read_json(path.with_name("config.json")).get("model_type") in _MODELS


def t5_settings(path: Path, settings: TokenizerSettings, config: Mapping[str, Any], pieces: int) -> TokenizerSettings:
    """With what transformers adds to a file of so many pieces. Raises TokenizerError."""
    count = config.get("extra_ids", SENTINELS)
    if not isinstance(count, int) or not 0 <= count <= 10000:
        raise TokenizerError(f"{path.with_name('tokenizer_config.json')}: extra_ids must be a whole number, not {count!r}")
    known, last = {token.content for token in settings.added_tokens}, pieces + count - 1
    made = [AddedToken(f"<extra_id_{i}>", last - i, True, False) for i in range(count) if f"<extra_id_{i}>" not in known]
    special = {**{key: AddedToken(text) for key, text in _NAMED.items()}, **settings.special_tokens}
    added = (*settings.added_tokens, *made)
    return replace(settings, add_eos=True, prefix="always", special_tokens=special, added_tokens=added)
