"""Files of torch.save, made, changed and refused."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.directory import Checkpoint

NAME = "pytorch_model.bin"


def save(directory: Path, loaded: Any, **options: Any) -> Path:
    torch.save(loaded, directory / NAME, **options)
    return directory / NAME


def rewrite(path: Path, *, compression: int = zipfile.ZIP_STORED, order: int = 1, **changes: bytes | None) -> None:
    """The same zip through another tool: perhaps compressed, reversed, or with records changed (None: left out)."""
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    folder = next(iter(records)).split("/")[0]
    for record, value in changes.items():
        records[f"{folder}/{record}"] = value
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, value in list(records.items())[::order]:
            if value is not None:
                new.writestr(name, value)


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    assert str(caught.value).startswith(f"{directory / NAME}: ")
    return str(caught.value)


base = torch.arange(120, dtype=torch.float32).reshape(10, 12)
