"""A SentencePiece model with what the files beside it say, for a bundle, which carries the model alone.

SentencePiece finds a special token in a text only where it is a user-defined symbol, and puts a space (▁) before a text whatever it
begins with. So a runtime that reads the model alone would spell a chat's special tokens out, letter by letter. Here they become
symbols, tokens that were added to the vocabulary become pieces, and the first space is left out where a chat begins with a special
token. A note in the model, which SentencePiece passes over, lets FlatLM read it as it was.

Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto (fields from 200 on are free).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flatlm.errors import TokenizerError
from flatlm.utilities.tokenizing.settings import TokenizerSettings

_NOTE_FIELD = 1000
_NOTE_TAG = b"\xc2\x3e"
"""Of field 1000, length-delimited."""


def model_for_bundle(model: bytes, settings: TokenizerSettings, source: Path, *, bare: bool) -> bytes:
    """The model in which special and added tokens are found; the same bytes where nothing is to be said.

    `bare`: texts begin with a special token, as a chat's do, and no space is put first.
    Raises TokenizerError for a chat in which each stretch of text begins with a space, which no SentencePiece model can say.
    """
    from sentencepiece import sentencepiece_model_pb2 as schema

    proto = schema.ModelProto.FromString(model)
    kinds = schema.ModelProto.SentencePiece
    added = {token.id: token.content for token in settings.added_tokens if token.id is not None and token.id >= len(proto.pieces)}
    prefixed = proto.normalizer_spec.add_dummy_prefix and settings.prefix != "never"
    if settings.chat_template is None and not added and prefixed == proto.normalizer_spec.add_dummy_prefix:
        return model
    if settings.chat_template is not None and settings.prefix == "always" and prefixed:
        raise TokenizerError(
            f"{source}: with a chat template and legacy = true, each stretch of text between special tokens begins with a space, which "
            "a SentencePiece model cannot say: write a tokenizer.json next to it, with "
            "transformers.AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    special = [i for i, piece in enumerate(proto.pieces) if piece.type == kinds.CONTROL] if settings.chat_template is not None else []
    for i in range(len(proto.pieces), 1 + max(added, default=-1)):
        proto.pieces.add(piece=added.get(i, f"<unused {i}>"), score=0.0, type=kinds.USER_DEFINED if i in added else kinds.UNUSED)
    for i in special:
        proto.pieces[i].type = kinds.USER_DEFINED
    proto.normalizer_spec.add_dummy_prefix = prefixed and not bare
    note = json.dumps({"control": [*special, *sorted(added)], "prefixed": prefixed}).encode()
    return bytes(proto.SerializeToString(deterministic=True)) + _NOTE_TAG + _varint(len(note)) + note


def model_from_bundle(data: bytes) -> bytes:
    """The model as it was, of a model with a note; another model as it is."""
    if _NOTE_TAG not in data:
        return data
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
    from google.protobuf.unknown_fields import UnknownFieldSet  # type: ignore[import-untyped, unused-ignore]
    from sentencepiece import sentencepiece_model_pb2 as schema

    try:
        proto = schema.ModelProto.FromString(data)
    except DecodeError:
        return data  # SentencePiece will say what is wrong with it
    for field in UnknownFieldSet(proto):
        if field.field_number == _NOTE_FIELD and (note := _read_note(field.data)) is not None:
            for i in note["control"]:
                if isinstance(i, int) and 0 <= i < len(proto.pieces):
                    proto.pieces[i].type = schema.ModelProto.SentencePiece.CONTROL
            proto.normalizer_spec.add_dummy_prefix = bool(note["prefixed"])
            return bytes(proto.SerializeToString(deterministic=True))
    return data


def _read_note(data: object) -> dict[str, Any] | None:
    try:
        note = json.loads(data) if isinstance(data, bytes) else None
    except ValueError:
        return None
    return note if isinstance(note, dict) and isinstance(note.get("control"), list) and "prefixed" in note else None


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
