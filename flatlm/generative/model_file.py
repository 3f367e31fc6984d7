"""A model by the decoders' conventions: which of a file's signatures read and write a text, over which caches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flatlm.convert.signatures import DECODE, PLACE_INPUTS, POSITION_IDS, PREFILL, PREFIX, VERIFY, read_name
from flatlm.errors import RuntimeFileError
from flatlm.generative.file_content import CACHE_PREFIX, DECODER, ENCODER, INFILLING, MASK, SignatureSpec, TensorSpec, read_content

_RUN_BY = {ENCODER: "`flatlm predict` reads texts with it"}


@dataclass(frozen=True)
class CacheLevel:
    """The signatures over caches of one length."""

    cache_length: int
    """S: the most tokens in them."""
    shortest_cache: int
    """Slots of the shortest cache: fewer than S where a layer keeps a ring of what its window needs."""
    decode: SignatureSpec
    prefill: tuple[SignatureSpec, ...]
    """From the shortest; one of each length."""
    verify: SignatureSpec | None = None
    """Reads a draft's tokens, with the logits of each."""


@dataclass(frozen=True)
class ModelFile:
    """A model that keeps FlatLM's conventions, whichever exporter wrote it, at [offset, offset + size) of the file."""

    path: Path
    offset: int
    size: int
    levels: tuple[CacheLevel, ...]
    """From the shortest caches. The longest's S is the context's length, as the manifest has it, or else the slots of the longest cache."""

    @property
    def decode(self) -> SignatureSpec:
        """Over the longest caches, as are all of these."""
        return self.levels[-1].decode

    @property
    def prefill(self) -> tuple[SignatureSpec, ...]:
        return self.levels[-1].prefill

    @property
    def cache_length(self) -> int:
        return self.levels[-1].cache_length

    @property
    def shortest_cache(self) -> int:
        return self.levels[-1].shortest_cache

    @property
    def vocab_size(self) -> int:
        return self.decode.outputs["logits"].shape[-1]

    @property
    def fills_blanks(self) -> bool:
        """Does the model fill blanks in a context that it reads whole (GLM), where others write on?"""
        return self.decode.fills_blanks

    def require_left_to_right(self) -> None:
        """RuntimeFileError for a file whose model fills blanks: it was not trained to write on."""
        if self.fills_blanks:
            raise RuntimeFileError(f"{self.path} fills blanks in a text, it does not write on from one: use flatlm generate")


def read_model_file(path: Path) -> ModelFile:
    """The same of a decoder's file, which keeps FlatLM's conventions; RuntimeFileError for anything else."""
    content = read_content(path)
    if content.kind not in (DECODER, INFILLING):
        hint = _RUN_BY.get(content.kind, "`flatlm inspect` shows what is in it")
        raise RuntimeFileError(f"{path} holds an {content.kind}: this runs decoders' files only; {hint}")
    own: dict[int | None, dict[str, SignatureSpec]] = {None: {}}
    for spec in content.signatures:
        name, shorter = read_name(spec.name)
        own.setdefault(shorter, {}).setdefault(name, spec)
    longest = own.pop(None)
    decode = longest.get(DECODE)
    slots = content.cache_slots.get(DECODE) or tuple(spec.mask_slots for spec in (decode,) if spec and spec.mask_slots is not None)
    length = _length(content.manifest) or max(slots, default=0)
    if decode is not None and not length:
        raise RuntimeFileError(f"{path}: its context's length cannot be told: decode updates none of its caches by DYNAMIC_UPDATE_SLICE")
    levels = [_level(path, longest, length, slots)]
    for slots_of, signatures in sorted(own.items(), key=lambda item: -(item[0] or 0)):
        level = _level(path, signatures, slots_of or 0, content.cache_slots.get(f"kv{slots_of}_{DECODE}", ()))
        _check_level(path, level, levels[0])
        levels.insert(0, level)
    return ModelFile(path, content.offset, content.size, tuple(levels))


def _length(manifest: Mapping[str, Any]) -> int:
    """The context's, by the manifest; 0 where it is silent."""
    value = manifest.get("kv_cache_len")
    return value if isinstance(value, int) and value > 0 else 0


def _level(path: Path, signatures: Mapping[str, SignatureSpec], length: int, slots: Sequence[int]) -> CacheLevel:
    """Those whose inputs and outputs are what the runner binds, over caches of `length`."""
    decode = signatures.get(DECODE)
    if decode is None:
        raise RuntimeFileError(f"{path} has no signature named decode, so it generates nothing: it has {', '.join(signatures) or 'none'}")
    prefill, verify = dict[int, SignatureSpec](), dict[int, SignatureSpec]()
    for name, spec in signatures.items():
        kind = next((kind for kind in (PREFILL, VERIFY) if name.startswith(kind)), None)
        if spec is not decode and kind is None:
            continue
        _check_signature(path, spec, decode.caches)
        if spec.mask_slots not in (None, length):
            raise RuntimeFileError(f"{path}: signature {spec.name} takes a mask over {spec.mask_slots} slots; its context has {length}")
        if kind == VERIFY and "logits" not in spec.outputs:
            raise RuntimeFileError(f"{path}: signature {spec.name} gives no logits, and a draft is checked by them")
        if kind is not None:
            (verify if kind == VERIFY else prefill).setdefault(spec.length, spec)
    if decode.length != 1 or "logits" not in decode.outputs:
        raise RuntimeFileError(
            f"{path}: {decode.name} must take one token and give logits; it takes {decode.length} and gives {list(decode.outputs)}"
        )
    ordered = tuple(prefill[length] for length in sorted(prefill))
    return CacheLevel(length, min(slots, default=length), decode, ordered, verify[max(verify)] if verify else None)


def _check_level(path: Path, level: CacheLevel, longer: CacheLevel) -> None:
    """That a text can move on from its caches to the longer ones: the same tensors, of as many slots or more along one axis."""
    here, there = level.decode.caches, longer.decode.caches
    where = f"{path}: signature {level.decode.name}"
    if here.keys() != there.keys() or not 0 < level.cache_length < longer.cache_length:
        raise RuntimeFileError(f"{where} must take the same caches as {longer.decode.name} does, and shorter ones")
    for name, tensor in here.items():
        other = there[name]
        grown = [i for i, (a, b) in enumerate(zip(tensor.shape, other.shape, strict=False)) if a != b]
        if (
            tensor.dtype != other.dtype
            or len(tensor.shape) != len(other.shape)
            or grown[1:]
            or any(tensor.shape[i] > other.shape[i] for i in grown)
        ):
            raise RuntimeFileError(
                f"{where} takes {name} {list(tensor.shape)}, which does not fit {list(other.shape)} of {longer.cache_length} slots"
            )
    if level.decode.outputs["logits"] != longer.decode.outputs["logits"]:
        raise RuntimeFileError(f"{where} gives other logits than {longer.decode.name}")


def _check_signature(path: Path, spec: SignatureSpec, caches: Mapping[str, TensorSpec]) -> None:
    where = f"{path}: signature {spec.name}"
    for name, rank in (("tokens", 2), ("input_pos", 1)):
        tensor = spec.inputs.get(name)
        if tensor is None or len(tensor.shape) != rank or tensor.dtype != np.int32:
            raise RuntimeFileError(f"{where} must take {name}, int32 of rank {rank}; it takes {', '.join(spec.inputs)}")
    tokens, positions = spec.inputs["tokens"].shape, spec.inputs["input_pos"].shape
    if tokens != (1, *positions):
        raise RuntimeFileError(f"{where} takes tokens {list(tokens)} and input_pos {list(positions)}; only batches of one sequence are run")
    mask = spec.inputs.get(MASK)
    if mask is not None and (len(mask.shape) != 4 or mask.shape[:3] != (1, 1, spec.length) or mask.dtype != np.float32):
        raise RuntimeFileError(f"{where} takes a mask {mask.dtype}{list(mask.shape)}; what is added to scores is float32 [1, 1, T, S]")
    if extra := sorted(set(spec.inputs) - {"tokens", "input_pos", MASK, *PLACE_INPUTS, *spec.caches}):
        raise RuntimeFileError(f"{where} takes inputs that are not understood: {', '.join(extra)}")
    places = {name: spec.inputs[name] for name in PLACE_INPUTS if name in spec.inputs}
    wanted = {POSITION_IDS: (2, spec.length), PREFIX: (1,)}
    if places and {name: (tensor.shape, tensor.dtype == np.int32) for name, tensor in places.items()} != {
        name: (shape, True) for name, shape in wanted.items()
    }:
        raise RuntimeFileError(f"{where} must take {POSITION_IDS} int32 [2, T] with {PREFIX} int32 [1]; it takes {', '.join(spec.inputs)}")
    if spec.caches != caches or any(spec.outputs.get(name) != tensor for name, tensor in caches.items()):
        raise RuntimeFileError(f"{where} must take and give the same {CACHE_PREFIX}* tensors as decode takes")
    if extra := sorted(set(spec.outputs) - {"logits", *caches}):
        raise RuntimeFileError(f"{where} gives outputs that are not understood: {', '.join(extra)}")
