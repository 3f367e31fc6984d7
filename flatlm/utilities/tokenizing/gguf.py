"""The tokenizer that a GGUF file carries in its metadata, as a file of one of the two kinds that `Tokenizer` reads.

tokenizer.ggml.model "llama" is a SentencePiece vocabulary with scores: it becomes a SentencePiece model again. "gpt2" is a
vocabulary of bytes with merges: it becomes a tokenizer.json, whose rule for cutting text into words tokenizer.ggml.pre names.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flatlm.errors import TokenizerError
from flatlm.utilities.checkpoints.gguf_header import read_metadata
from flatlm.utilities.tokenizing.settings import AddedToken, TokenizerSettings

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_ENDS = ("eos", "eot", "eom")

_CL100K = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}%s| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
_CASED = "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]%s[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]%s%s"
_TAIL = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


def _cut(rule: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


_DIGITS = {"type": "Digits", "individual_digits": True}
_BY_WORDS = (_bytes(use_regex=True),)
_BY_DIGITS = (_DIGITS, _bytes(use_regex=True))
_UP_TO_THREE = (_cut(_CL100K % "{1,3}"), _bytes(use_regex=False))
_ONE_BY_ONE = (_cut(_CL100K % ""), _bytes(use_regex=False))

_RULES: Mapping[str, tuple[dict[str, Any], ...]] = {
    "llama-bpe": _UP_TO_THREE,
    "dbrx": _UP_TO_THREE,
    "smaug-bpe": _UP_TO_THREE,
    "qwen2": _ONE_BY_ONE,
    "stablelm2": _ONE_BY_ONE,
    "gpt-2": _BY_WORDS,
    "phi-2": _BY_WORDS,
    "starcoder": _BY_DIGITS,
    "refact": _BY_DIGITS,
    "smollm": _BY_DIGITS,
    "falcon": (
        {"type": "Punctuation", "behavior": "Contiguous"},
        _bytes(use_regex=True),
        {"type": "Digits", "individual_digits": False},
        _cut("[0-9][0-9][0-9]"),
    ),
    "tekken": (_cut(_CASED % ("*", "+", "") + "|" + _CASED % ("+", "*", "") + "|\\p{N}" + _TAIL), _bytes(use_regex=False)),
    "gpt-4o": (
        _cut(_CASED % ("*", "+", _SHORT) + "|" + _CASED % ("+", "*", _SHORT) + "|\\p{N}{1,3}" + _TAIL),
        _bytes(use_regex=False),
    ),
}
"""tokenizer.ggml.pre to the steps that cut a text into words, as tokenizer.json has them."""

_ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe", "deepseek-r1-qwen": "qwen2", "llama4": "gpt-4o"}
_WHOLE_WORDS_FIRST = ("llama-bpe", "tekken", "gpt-4o")
"""A word that is a token is that token, whatever the merges say."""
_BEGIN_WITH_BOS = ("llama-bpe", "tekken")
"""Where tokenizer.ggml.add_bos_token is absent."""


def read_tokenizer(file: Path) -> tuple[Literal["hf", "sentencepiece"], bytes, TokenizerSettings]:
    """The kind, the content of a file of that kind, and its settings. Raises TokenizerError, or CheckpointError for a broken file."""
    metadata = _Metadata(file, read_metadata(file))
    model = metadata.text("model")
    if model == "llama":
        return "sentencepiece", _sentencepiece_model(metadata), _settings(metadata, add_bos=metadata.flag("add_bos_token", True))
    if model == "gpt2":
        return "hf", _tokenizer_json(metadata), _settings(metadata, add_bos=False)
    raise TokenizerError(
        f"{file}: its tokenizer is of the kind {model!r}, which FlatLM does not read from GGUF files; it reads llama and gpt2. Put the "
        "file alone in a directory with the original model's tokenizer.json, and give that directory"
        if model
        else f"{file}: has no tokenizer (no tokenizer.ggml.model)"
    )


class _Metadata:
    """The keys tokenizer.ggml.*, of the kinds that they should be."""

    def __init__(self, file: Path, values: Mapping[str, Any]) -> None:
        self.file, self._values = file, values
        self.tokens: list[str] = self._list("tokens")
        self.types = self._numbers("token_type", len(self.tokens))
        self.scores = self._numbers("scores", len(self.tokens))

    def text(self, key: str) -> str:
        value = self._values.get(f"tokenizer.ggml.{key}", "")
        return value if isinstance(value, str) else ""

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._values.get(f"tokenizer.ggml.{key}", default))

    def merges(self) -> list[str]:
        return self._list("merges")

    def token(self, name: str) -> int | None:
        """The id of a named token, if it is one."""
        value = self._values.get(f"tokenizer.ggml.{name}_token_id")
        return value if type(value) is int and 0 <= value < len(self.tokens) else None

    def chat_template(self) -> str | None:
        value = self._values.get("tokenizer.chat_template")
        return value if isinstance(value, str) and value else None

    def of_type(self, kind: int) -> list[int]:
        return [] if self.types is None else [int(i) for i in np.flatnonzero(self.types == kind)]

    def _list(self, key: str) -> list[str]:
        value = self._values.get(f"tokenizer.ggml.{key}", [])
        if not isinstance(value, list):
            raise TokenizerError(f"{self.file}: tokenizer.ggml.{key} is not a list of texts; download it again")
        return value

    def _numbers(self, key: str, count: int) -> np.ndarray[Any, np.dtype[Any]] | None:
        value = self._values.get(f"tokenizer.ggml.{key}")
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or len(value) != count:
            raise TokenizerError(f"{self.file}: tokenizer.ggml.{key} is not a number for each of {count} tokens; download it again")
        return value


def _settings(metadata: _Metadata, *, add_bos: bool) -> TokenizerSettings:
    ids = {name: metadata.token(key) for name, key in _NAMED.items()}
    ends = [metadata.token(key) for key in _ENDS]
    return TokenizerSettings(
        special_tokens={name: AddedToken(metadata.tokens[i], i) for name, i in ids.items() if i is not None},
        add_bos=add_bos,
        add_eos=metadata.flag("add_eos_token", False),
        prefix="first" if metadata.flag("add_space_prefix", True) else "never",
        bos_id=ids["bos_token"],
        eos_ids=tuple(dict.fromkeys(i for i in ends if i is not None)),
        chat_template=metadata.chat_template(),
    )


def _tokenizer_json(metadata: _Metadata) -> bytes:
    """A byte-level BPE tokenizer.json. Control tokens are special; user-defined ones are found whole but stay in the text."""
    named = metadata.text("pre") or "default"
    pre = _ALIASES.get(named, named)
    if pre not in _RULES:
        raise TokenizerError(
            f"{metadata.file}: tokenizer.ggml.pre is {named!r}, whose rule FlatLM does not know; it knows "
            f"{', '.join(sorted([*_RULES, *_ALIASES]))}. Put the file alone in a directory with the original model's tokenizer.json, "
            "and give that directory"
        )
    vocabulary = {token: i for i, token in enumerate(metadata.tokens)}
    added = [_added_token(metadata, i) for i in sorted(metadata.of_type(_CONTROL) + metadata.of_type(_USER_DEFINED))]
    bos = metadata.token("bos")
    begins = bos is not None and metadata.flag("add_bos_token", pre in _BEGIN_WITH_BOS)
    eos = metadata.token("eos")
    ends = eos is not None and metadata.flag("add_eos_token", False)
    content = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(_RULES[pre])},
        "post_processor": _template(metadata, bos if begins else None, eos if ends else None),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": vocabulary,
            "merges": [merge.split(" ", 1) if merge[:1] != " " else merge.rsplit(" ", 1) for merge in metadata.merges()],
            "ignore_merges": pre in _WHOLE_WORDS_FIRST,
        },
    }
    return json.dumps(content, ensure_ascii=False).encode()


def _added_token(metadata: _Metadata, number: int) -> dict[str, Any]:
    special = metadata.types is not None and int(metadata.types[number]) == _CONTROL
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": number, "content": metadata.tokens[number], **flags}


def _template(metadata: _Metadata, bos: int | None, eos: int | None) -> dict[str, Any] | None:
    if bos is None and eos is None:
        return None
    used = {metadata.tokens[i]: i for i in (bos, eos) if i is not None}
    before = [] if bos is None else [{"SpecialToken": {"id": metadata.tokens[bos], "type_id": 0}}]
    after = [] if eos is None else [{"SpecialToken": {"id": metadata.tokens[eos], "type_id": 0}}]
    pieces = {"A": [*before, {"Sequence": {"id": "A", "type_id": 0}}, *after]}
    pair = [*pieces["A"], *before, {"Sequence": {"id": "B", "type_id": 1}}, *after]
    specials = {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in used.items()}
    return {"type": "TemplateProcessing", "single": pieces["A"], "pair": pair, "special_tokens": specials}


def _sentencepiece_model(metadata: _Metadata) -> bytes:
    """A SentencePiece ModelProto: BPE by scores, as llama.cpp merges. Field numbers: sentencepiece_model.proto."""
    scores, types = metadata.scores, metadata.types
    if scores is None or (len(scores) > 1 and (scores == scores[0]).all()):
        scores = -np.arange(len(metadata.tokens), dtype=np.float32)  # some converters lose them; vocabularies are in their order
    model = bytearray()
    for number, token in enumerate(metadata.tokens):
        kind = _NORMAL if types is None else int(types[number])
        text = (token.replace(" ", "▁") if kind == _USER_DEFINED else token).encode()
        piece = _field(1, text) + b"\x15" + struct.pack("<f", float(scores[number])) + (b"\x18" + _varint(kind))
        model += _field(1, piece)
    bpe = _number(3, 2)
    ids = _number(40, _id(metadata.token("unknown"))) + _number(41, _id(metadata.token("bos"))) + _number(42, _id(metadata.token("eos")))
    bytes_too = _number(35, int(bool(types is not None and (types == 6).any())))
    model += _field(2, bpe + _number(4, len(metadata.tokens)) + bytes_too + ids + _number(43, _id(metadata.token("padding"))))
    prefix, extra = metadata.flag("add_space_prefix", True), metadata.flag("remove_extra_whitespaces", False)
    model += _field(3, _field(1, b"identity") + _number(3, int(prefix)) + _number(4, int(extra)) + _number(5, 1))
    return bytes(model)


def _id(number: int | None) -> int:
    return -1 if number is None else number


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data
