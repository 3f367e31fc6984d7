"""The conditional random field that a checkpoint has behind its labels: found by name, and written into a file's manifest.

No operator of the exported graph is made of it: the labels' scores leave the file, and the runner decodes them (`flatlm/tasks/crf.py`).
It is small (L x L numbers for L labels), so the manifest holds all of it, as base64 of little-endian float32.
"""

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.store import TensorStore

_PARTS = ("transitions", "start_transitions", "end_transitions")
CRF_TENSORS = (*(f"*crf.{part}" for part in _PARTS), "*crf_layer.trans")
"""Patterns (fnmatch) of all names that `read_crf` reads: pytorch-crf's module under the name `crf`, and FlagAI's layer."""
LABELS_TOKENS = "token-classification"
"""The task of an encoder, as its facts name it, whose labels a CRF decodes."""
MAX_LABELS = 96
"""Of a CRF that fits a manifest."""
NEVER = -1e5
"""The score of a first label that FlagAI's decoding rules out."""
Array = NDArray[np.float32]


def read_crf(checkpoint: TensorStore, labels: int) -> dict[str, Any] | None:
    """What the manifest says of the checkpoint's CRF over so many labels; None where it has none.

    Raises CheckpointError where only a part of it is there, shapes differ from the labels, or the manifest is too small for it.
    """
    found = _named(checkpoint.tensors)
    if not found:
        return None
    if "trans" in found:
        arrays = [_array(checkpoint, found["trans"], (labels, labels)), np.full(labels, NEVER, np.float32), np.zeros(labels, np.float32)]
        arrays[1][0] = 0.0
    else:
        shapes = {"transitions": (labels, labels), "start_transitions": (labels,), "end_transitions": (labels,)}
        if missing := [name for name in shapes if name not in found]:
            raise CheckpointError(
                f"{checkpoint.directory}: has a CRF ({', '.join(found.values())}) without its {' and '.join(missing)}: it cannot be decoded"
            )
        arrays = [_array(checkpoint, found[name], shape) for name, shape in shapes.items()]
    if labels > MAX_LABELS:
        raise CheckpointError(
            f"{checkpoint.directory}: a CRF over {labels} labels does not fit the manifest, which holds up to {MAX_LABELS}"
        )
    return encode_crf(*arrays)


def crf_tensors(checkpoint: TensorStore) -> dict[str, torch.Tensor]:
    """The CRF's tensors as they are, by their names."""
    return {name: checkpoint.read(name) for name in _named(checkpoint.tensors).values()}


def encode_crf(transitions: Array, start: Array, end: Array) -> dict[str, Any]:
    """As a manifest holds them: transitions [L, L], start [L], end [L]."""
    arrays = {"transitions": transitions, "start": start, "end": end}
    return {"labels": len(start)} | {name: base64.b64encode(array.astype("<f4").tobytes()).decode() for name, array in arrays.items()}


def decode_crf(facts: Mapping[str, Any]) -> tuple[Array, Array, Array]:
    """The inverse of `encode_crf`. Raises KeyError, TypeError or ValueError for what it did not write."""
    count = int(facts["labels"])
    shapes = {"transitions": (count, count), "start": (count,), "end": (count,)}
    each = [np.frombuffer(base64.b64decode(facts[name]), "<f4").reshape(shape).astype(np.float32) for name, shape in shapes.items()]
    return each[0], each[1], each[2]


def _named(tensors: Iterable[str]) -> dict[str, str]:
    """The CRF's tensors by what they are: `trans` (FlagAI), or the last part of pytorch-crf's names."""
    found = {}
    for name in tensors:
        owner, _, last = name.rpartition(".")
        module = owner.rpartition(".")[2]
        if (module, last) == ("crf_layer", "trans") or (
            module == "crf" and last in ("transitions", "start_transitions", "end_transitions")
        ):
            found[last] = name
    return found


def _array(checkpoint: TensorStore, name: str, shape: tuple[int, ...]) -> Array:
    record = checkpoint.tensors[name]
    if record.shape != shape:
        raise CheckpointError(f"{checkpoint.directory}: {name} has shape {list(record.shape)}; the labels ask for {list(shape)}")
    values: Array = checkpoint.read(name).float().numpy()
    if not np.isfinite(values).all():
        raise CheckpointError(f"{checkpoint.directory}: {name} has values that are not finite: it cannot be decoded")
    return values
