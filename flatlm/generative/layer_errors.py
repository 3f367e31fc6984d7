"""Where in the model an exported file loses what it loses: the error of each layer's keys and values, in the file itself.

A runtime with fused kernels gives out none of the values between a signature's inputs and outputs, but for the KV caches: they are
inputs and outputs, so what every layer wrote can be read back from the very file that ships, without one operator more in it. A layer's
keys and values are projections of what reached it: damage in a layer's projection of queries, keys and values shows in that layer,
damage behind it (attention's output, feed-forward) in the next one, and that of the last layer in the logits.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flatlm.errors import RuntimeFileError, TextError
from flatlm.generative.file_tokenizer import file_tokenizer
from flatlm.generative.model_file import read_model_file
from flatlm.generative.runner import Runner
from flatlm.generative.verify import require_its_adapter
from flatlm.layers.kv_cache import KEY_UNIT, VALUE_UNIT, Cache, empty_caches
from flatlm.layers.model import Decoder
from flatlm.utilities.documents import encode_document
from flatlm.utilities.example import build_model
from flatlm.utilities.reading import AS_IT_SAYS, Reading
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

DEFAULT_TOKENS = 128
CHUNK = 64
"""Tokens that the eager model reads at once."""
Array = NDArray[np.float32]
_KEYS = re.compile(r"kv_cache_k_(\d+)")


@dataclass(frozen=True)
class LayerErrors:
    """Root mean square of the difference over that of the eager model's values, 0 for equal ones.

    `layers`: (layer, error of its keys, error of its values), from the first. `logits_error`: of the logits after the last token.
    """

    tokens: int
    layers: tuple[tuple[int, float, float], ...]
    logits_error: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def layer_errors(
    file: Path, checkpoint: Path, ids: Sequence[int], *, lora: Path | None = None, reading: Reading = AS_IT_SAYS
) -> LayerErrors:
    """Run `file` and the eager model of its checkpoint (and `lora`, the adapter merged into the file) on the same tokens.

    Raises a FlatlmError where either cannot be run, or the file did not come from the checkpoint.
    """
    require_its_adapter(file, lora)
    with Runner.open(file) as runner:
        return compare_layers(runner, build_model(checkpoint, kv_cache_max_len=runner.cache_length, lora=lora, reading=reading), ids)


def layer_errors_on_text(
    file: Path,
    checkpoint: Path,
    documents: Sequence[str],
    *,
    tokens: int = DEFAULT_TOKENS,
    lora: Path | None = None,
    reading: Reading = AS_IT_SAYS,
    tokenizer: Path | None = None,
) -> LayerErrors:
    """The same on the first so many tokens of a text, as far as the file's context goes.

    `tokenizer`: its directory; by default the bundle's own, else the checkpoint's. Raises TextError and TokenizerError, too.
    """
    room = read_model_file(file).cache_length
    ids = text_ids(file_tokenizer(file, tokenizer, checkpoint), documents, tokens=min(tokens, room))
    return layer_errors(file, checkpoint, ids, lora=lora, reading=reading)


def text_ids(tokenizer: Tokenizer, documents: Sequence[str], *, tokens: int = DEFAULT_TOKENS) -> list[int]:
    """The first so many tokens of the documents, one after the other. Raises TextError."""
    ids = list[int]()
    for document in documents:
        ids += encode_document(document, tokenizer, tokenizer.vocab_size)
        if len(ids) >= tokens:
            break
    return ids[:tokens]


@torch.inference_mode()
def compare_layers(runner: Runner, model: Decoder, ids: Sequence[int]) -> LayerErrors:
    """The same of an open file and an eager model in float32 whose caches hold the whole context.

    The text is read through the prefill signatures, its last token by decode. A layer whose cache is a ring is compared at the
    positions that are still in it.
    """
    if len(ids) < 2:
        raise TextError(f"{len(ids)} tokens are too few to compare layers on: give 2, so that prefill and decode are both run")
    names = _cache_names(runner)
    if len(names) != len(model.config.blocks):
        raise RuntimeFileError(
            f"{runner.file.path} has {len(names)} layers with caches, the checkpoint {len(model.config.blocks)}: "
            "give the checkpoint that it came from"
        )
    runner.reset()
    runner.prefill(ids[:-1])
    got = runner.step(ids[-1])
    expected, caches = _read(model, ids)
    if len(expected) != len(got):
        raise RuntimeFileError(
            f"{runner.file.path} has a vocabulary of {len(got)}, the checkpoint one of {len(expected)}: give the checkpoint it came from"
        )
    overhang = max(runner.prefill_lengths, default=1) - 1  # a padded call writes garbage so far beyond its last token
    layers = []
    for layer, cache in enumerate(caches):
        k, v = _floats(runner, f"kv_cache_k_{layer}", KEY_UNIT), _floats(runner, f"kv_cache_v_{layer}", VALUE_UNIT)
        slots = k.shape[2]
        ring = slots < runner.cache_length
        positions = np.arange(max(0, len(ids) + overhang - slots) if ring else 0, len(ids))
        eager_k, eager_v = cache.k.numpy()[:, :, positions], cache.v.numpy()[..., positions]
        k, v = k[:, :, positions % slots], v[..., positions % slots]
        if k.shape != eager_k.shape:
            raise RuntimeFileError(
                f"{runner.file.path}: layer {layer} has {k.shape[1]} heads of {k.shape[3]} in its cache, the checkpoint "
                f"{eager_k.shape[1]} of {eager_k.shape[3]}: give the checkpoint that it came from"
            )
        layers.append((layer, _relative_error(k, eager_k), _relative_error(v, eager_v)))
    return LayerErrors(len(ids), tuple(layers), _relative_error(got, expected))


def _cache_names(runner: Runner) -> list[str]:
    """Of the layers' keys. RuntimeFileError where they are not numbered 0, 1, ..."""
    caches = runner.file.decode.caches
    names = [name for name in caches if _KEYS.fullmatch(name)]
    if any(f"kv_cache_{part}_{layer}" not in caches for layer in range(len(names)) for part in "kv"):
        raise RuntimeFileError(
            f"{runner.file.path}: its caches are {', '.join(caches)}, not FlatLM's kv_cache_k_<layer>, kv_cache_v_<layer>"
        )
    return names


def _read(model: Decoder, ids: Sequence[int]) -> tuple[Array, Sequence[Cache]]:
    """The logits [V] after the last id, and the caches."""
    caches: Sequence[Cache] = empty_caches(model.config, model.geometry)
    for start in range(0, len(ids), CHUNK):
        part = ids[start : start + CHUNK]
        positions = torch.arange(start, start + len(part), dtype=torch.int32)
        logits, caches = model(torch.tensor([list(part)], dtype=torch.int32), positions, caches)
    last: Array = logits[0, -1].numpy()
    return last, caches


def _floats(runner: Runner, name: str, unit: float) -> Array:
    """A cache's values. int8 ones count units of their token's and head's scale, [1, K, 1, S]."""
    values = runner.read_cache(name)
    if values.dtype != np.int8:
        return values.astype(np.float32)
    scale = runner.read_cache(f"{name}_scale") * np.float32(unit)
    return values.astype(np.float32) * (scale.transpose(0, 1, 3, 2) if "_k_" in name else scale)


def _relative_error(got: Array, expected: Array) -> float:
    """Infinite where what should be 0 is not, or anything is not a number."""
    difference = got.astype(np.float64) - expected
    if not np.isfinite(difference).all():
        return float("inf")
    error, size = float(np.sqrt(np.mean(difference**2))), float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
    return 0.0 if error == 0 else error / size if size else float("inf")
