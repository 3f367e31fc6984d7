"""What a checkpoint's files say about its tokenizer beside the vocabulary: special tokens, ends of text, the chat template.

Only files of fixed names in the tokenizer's own directory are read. Paths inside them (vocab_file, name_or_path, ...) are never
followed, and code that they refer to (auto_map) is never run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flatlm.errors import TokenizerError

MAX_FILE = 256 * 2**20
"""Bytes of any tokenizer file; the largest vocabularies take about 35 MiB."""

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that have a name of their own."""

_FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")


@dataclass(frozen=True)
class AddedToken:
    """A piece of text that is one token wherever it stands. `id` is None where the vocabulary knows it."""

    content: str
    id: int | None = None
    special: bool = True
    """Special tokens are left out of decoded text."""
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class TokenizerSettings:
    """How to use a vocabulary. The defaults leave everything to the vocabulary's own file."""

    special_tokens: Mapping[str, AddedToken] = field(default_factory=dict)
    """By name: those of NAMED_TOKENS, and others ("image_token") that a tokenizer may have."""
    extra_tokens: tuple[AddedToken, ...] = ()
    """Special tokens without a name."""
    added_tokens: tuple[AddedToken, ...] = ()
    """Tokens that were added to the vocabulary, with their ids, in the order of the ids."""
    add_bos: bool = False
    """For SentencePiece models only, as `add_eos`: a tokenizer.json says itself what it adds."""
    add_eos: bool = False
    prefix: Literal["first", "always", "never"] = "first"
    """Where a SentencePiece model, or a tokenizer of `llama_rules`, puts a space: before the text, or before each stretch of it
    between special tokens."""
    llama_rules: bool = False
    """The checkpoint declares LlamaTokenizer, for which transformers 5 puts its own rules for spaces in place of tokenizer.json's."""
    before: tuple[str, ...] = ()
    """For SentencePiece models only, as `after`: special tokens that a text begins with, beside BOS."""
    after: tuple[str, ...] = ()
    cpm: bool = False
    """A SentencePiece model over words that are cut before (cpm.py)."""
    split_special_tokens: bool = False
    """Text that looks like a special token is ordinary text."""
    bos_id: int | None = None
    """From config.json or generation_config.json; used where no bos_token is named."""
    eos_ids: tuple[int, ...] = ()
    """From generation_config.json, else config.json; the eos_token is added to them."""
    chat_template: str | None = None


def read_settings(directory: Path) -> TokenizerSettings:
    """From tokenizer_config.json and the files beside it, none of which has to be there. Raises TokenizerError."""
    config = read_json(directory / "tokenizer_config.json")
    model = read_json(directory / "config.json")
    generation = read_json(directory / "generation_config.json")
    source = directory / "tokenizer_config.json"
    if "added_tokens_decoder" in config:
        added = tuple(_added_tokens(config["added_tokens_decoder"], source))
    else:
        config = {**config, **read_json(directory / "special_tokens_map.json")}
        extra_ids = read_json(directory / "added_tokens.json").items()
        names = {token.content for token in _special_tokens(config, source).values()}
        pairs = sorted((_an_id(number, directory / "added_tokens.json"), text) for text, number in extra_ids)
        added = tuple(AddedToken(text, number, text in names, text not in names) for number, text in pairs)
    inner = model.get("text_config")
    places = [place for place in (generation, model, inner) if isinstance(place, dict)]
    bos, eos = ([place[key] for place in places if place.get(key) is not None] for key in ("bos_token_id", "eos_token_id"))
    return TokenizerSettings(
        special_tokens=_special_tokens(config, source),
        extra_tokens=_extra_tokens(config, source),
        added_tokens=added,
        add_bos=bool(config.get("add_bos_token", False)),
        add_eos=bool(config.get("add_eos_token", False)),
        prefix="never" if config.get("add_prefix_space") is False else "always" if config.get("legacy") else "first",
        llama_rules=_has_llama_rules(config, model),
        split_special_tokens=bool(config.get("split_special_tokens", False)),
        bos_id=_ids(bos[0], "bos_token_id", directory)[0] if bos else None,
        eos_ids=_ids(eos[0], "eos_token_id", directory) if eos else (),
        chat_template=_chat_template(directory, config.get("chat_template")),
    )


def read_bytes(path: Path) -> bytes:
    """A whole file, within MAX_FILE. Raises TokenizerError."""
    try:
        if not path.is_file():
            raise TokenizerError(f"{path}: is not a file")
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE + 1)
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE:
        raise TokenizerError(f"{path}: is larger than {MAX_FILE} bytes, too large for a tokenizer's file")
    return data


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no such file. Raises TokenizerError."""
    if not path.exists():
        return {}
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: is not JSON ({error}); download it again") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path}: is not a JSON object; download it again")
    return content


def _token(value: object, key: str, source: Path, number: int | None = None) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, number)
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        return AddedToken(value["content"], number, **{flag: bool(value[flag]) for flag in _FLAGS if flag in value})
    raise TokenizerError(f"{source}: {key} must be text, or an object with its text under 'content', not {_short(value)}")


def _special_tokens(config: Mapping[str, Any], source: Path) -> dict[str, AddedToken]:
    named = config.get("extra_special_tokens")
    tokens = {key: config[key] for key in NAMED_TOKENS if config.get(key) is not None}
    # Others may be named so too; but add_bos_token, say, is a switch.
    tokens.update({key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str | dict)})
    tokens.update(named if isinstance(named, dict) else {})
    return {key: _token(value, key, source) for key, value in tokens.items()}


def _extra_tokens(config: Mapping[str, Any], source: Path) -> tuple[AddedToken, ...]:
    values = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(values, dict):
        return ()
    if not isinstance(values, list):
        raise TokenizerError(f"{source}: additional_special_tokens must be a list, not {_short(values)}")
    return tuple(_token(value, "additional_special_tokens", source) for value in values)


def _added_tokens(values: object, source: Path) -> list[AddedToken]:
    if not isinstance(values, dict):
        raise TokenizerError(f"{source}: added_tokens_decoder must be an object, not {_short(values)}")
    numbered = [_token(value, f"added_tokens_decoder[{key}]", source, _an_id(key, source)) for key, value in values.items()]
    return sorted(numbered, key=lambda token: token.id or 0)


def _an_id(value: object, source: Path) -> int:
    if isinstance(value, int | str) and not isinstance(value, bool) and str(value).isdecimal() and len(str(value)) < 10:
        return int(value)
    raise TokenizerError(f"{source}: a token's id must be a number, not {_short(value)}")


def _ids(value: object, key: str, directory: Path) -> tuple[int, ...]:
    values = value if isinstance(value, list) and value else [value]
    for item in values:
        if not isinstance(item, int) or isinstance(item, bool):
            raise TokenizerError(
                f"{directory}: {key} in generation_config.json or config.json must be a number or numbers, not {_short(value)}"
            )
    return tuple(values)


def _has_llama_rules(config: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    """Where AutoTokenizer makes a LlamaTokenizer. Other kinds of model that declare it (Mistral, Phi-3) get tokenizer.json as it is."""
    declared = config.get("tokenizer_class") or model.get("tokenizer_class")
    return declared in ("LlamaTokenizer", "LlamaTokenizerFast") and model.get("model_type", "llama") == "llama"


def _chat_template(directory: Path, value: object) -> str | None:
    """A file of its own goes before the configuration; of several templates, the one named "default" counts."""
    path = directory / "chat_template.jinja"
    if path.exists():
        try:
            return read_bytes(path).decode("utf-8")
        except ValueError as error:
            raise TokenizerError(f"{path}: is not UTF-8 text ({error}); download it again") from error
    if isinstance(value, list):
        templates = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = templates.get("default")
    if value is not None and not isinstance(value, str):
        raise TokenizerError(f"{directory / 'tokenizer_config.json'}: chat_template must be text, or a list of named texts")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
