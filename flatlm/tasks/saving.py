"""A model back on the disk, as a checkpoint: config.json, and its weights by the names that it came with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from flatlm.convert.atomic_file import atomic_output
from flatlm.errors import OutputError

DROPPED_KEYS = ("quantization_config",)
"""Of config.json: the weights are written as the model has them, in floating point."""


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
