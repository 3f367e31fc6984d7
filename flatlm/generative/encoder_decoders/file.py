"""What an exported file of an encoder with a decoder says of itself, checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flatlm.convert.encoder_decoder_graph import DECODE, ENCODE
from flatlm.errors import RuntimeFileError
from flatlm.generative.file_content import SignatureSpec, TensorSpec, read_content
from flatlm.layers.encoder_decoder_config import WritingConfig

KIND = "encoder-decoder"
CROSS_PREFIX = "cross_"


@dataclass(frozen=True)
class EncoderDecoderFile:
    """A model with the signatures that `convert.encoder_decoder_graph` describes, at [offset, offset + size) of the file."""

    path: Path
    offset: int
    size: int
    decode: SignatureSpec
    encoders: tuple[SignatureSpec, ...]
    """From the shortest."""
    cache_length: int
    """S: the most tokens that are written, with the one they begin with."""
    writing: WritingConfig

    @property
    def vocab_size(self) -> int:
        return self.decode.outputs["logits"].shape[-1]

    @property
    def encoder_length(self) -> int:
        """S_e: the most tokens that are read."""
        return self.encoders[-1].length

    @property
    def cross(self) -> dict[str, TensorSpec]:
        """The decoder layers' keys and values of what was read."""
        return {name: spec for name, spec in self.decode.inputs.items() if name.startswith(CROSS_PREFIX)}


def read_encoder_decoder_file(path: Path) -> EncoderDecoderFile:
    """Raises RuntimeFileError for a file that cannot be read, or is of another kind."""
    content = read_content(path)
    if content.kind != KIND:
        raise RuntimeFileError(f"{path} holds a model of the kind {content.kind}, not {KIND}; flatlm inspect shows what is in it")
    named = {spec.name: spec for spec in content.signatures}
    encoders = [spec for name, spec in named.items() if name == ENCODE or name.startswith(f"{ENCODE}_")]
    if DECODE not in named or ENCODE not in named:
        raise RuntimeFileError(f"{path} must have the signatures {ENCODE} and {DECODE}; it has {', '.join(named)}")
    decode = named[DECODE]
    cross = {name: spec for name, spec in decode.inputs.items() if name.startswith(CROSS_PREFIX)}
    for spec in encoders:
        if spec.inputs.keys() != {"tokens", "mask"} or spec.outputs != cross:
            raise RuntimeFileError(
                f"{path}: signature {spec.name} must take tokens and mask, and give the {CROSS_PREFIX}* that {DECODE} takes"
            )
    kept = {"tokens", "input_pos", "encoder_mask", *cross, *decode.caches}
    if decode.inputs.keys() != kept or decode.outputs.keys() != {"logits", *decode.caches} or decode.length != 1:
        raise RuntimeFileError(f"{path}: signature {DECODE} takes {', '.join(decode.inputs)} and gives {', '.join(decode.outputs)}")
    if decode.inputs["encoder_mask"] != TensorSpec((1, named[ENCODE].length), np.dtype(np.float32)):
        raise RuntimeFileError(f"{path}: {DECODE} must take an encoder_mask float32 [1, {named[ENCODE].length}], as long as {ENCODE} reads")
    length = _number(path, content.manifest, "kv_cache_len")
    writing = WritingConfig(
        _number(path, content.manifest, "decoder_start_token_id"),
        tuple(content.manifest.get("eos_token_ids") or ()),
        _number(path, content.manifest, "pad_token_id"),
        content.manifest.get("forced_bos_token_id"),
        content.manifest.get("forced_eos_token_id"),
    )
    ordered = tuple(sorted(encoders, key=lambda spec: spec.length))
    return EncoderDecoderFile(path, content.offset, content.size, decode, ordered, length, writing)


def _number(path: Path, manifest: Mapping[str, Any], key: str) -> int:
    value = manifest.get(key)
    if not isinstance(value, int):
        raise RuntimeFileError(f"{path}: its manifest has no {key}: it was damaged after its export")
    return value
