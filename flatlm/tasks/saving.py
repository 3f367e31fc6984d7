"""A model back on the disk, as a checkpoint: config.json, and its weights by the names that it came with."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from flatlm.convert.atomic_file import atomic_output
from flatlm.errors import OutputError
from flatlm.utilities.configs.encoder_tasks import ARCHITECTURE_ENDINGS, MASKED_LM, REPLACED_TOKENS
from flatlm.utilities.configs.families import family_record

DROPPED_KEYS = ("quantization_config",)
"""Of config.json: the weights are written as the model has them, in floating point."""


_PRETRAINING = (MASKED_LM, REPLACED_TOKENS)
"""Tasks whose heads an architecture that ends in ForPreTraining may have too."""


def with_architecture(values: Mapping[str, Any], family: str, task: str | None) -> dict[str, Any]:
    """config.json's values, whose `architectures` name the family's class with the head that the model has.

    `task`: an encoder's; None for other kinds, which keep what they are. The name that is there stays where it is right.
    """
    given = next(iter(values.get("architectures") or ()), "")
    names = family_record(family).architectures
    fitting = names if task is None else tuple(name for name in names if name.endswith(_endings(task)))
    if given in fitting or not fitting:
        return dict(values)
    nearest = next(iter(difflib.get_close_matches(given, fitting, 1)), fitting[0])
    return {**values, "architectures": [nearest]}


def _endings(task: str) -> tuple[str, ...]:
    """How the architecture may end of an encoder with the task's head; without one it ends in Model."""
    own = [ARCHITECTURE_ENDINGS[task]] if task in ARCHITECTURE_ENDINGS else []
    return (*own, *(["ForPreTraining"] if task in _PRETRAINING else [])) or ("Model",)


def save_checkpoint(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write `directory`/config.json and model.safetensors, each whole or not at all. Raises OutputError."""
    from safetensors.torch import save_file

    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{directory} cannot be made a directory ({error.strerror}): choose another") from error
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    kept = {key: value for key, value in config.items() if key not in (*DROPPED_KEYS, "torch_dtype")}
    with atomic_output(directory / "model.safetensors") as weights, atomic_output(directory / "config.json") as values:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
        values.write_text(json.dumps({**kept, "dtype": dtype}, indent=2, ensure_ascii=False) + "\n", "utf-8")
