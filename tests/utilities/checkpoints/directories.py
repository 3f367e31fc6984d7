"""Checkpoint directories, made and refused."""

import json
from pathlib import Path

import pytest
import torch

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.directory import Checkpoint


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    return str(caught.value)


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write_index(directory: Path, weight_map: object, name: str = "model.safetensors.index.json") -> Path:
    path = directory / name
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path
