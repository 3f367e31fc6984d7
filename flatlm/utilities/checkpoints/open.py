"""Opens a checkpoint in whatever form it is kept."""

from pathlib import Path

from flatlm.utilities.checkpoints.directory import Checkpoint
from flatlm.utilities.checkpoints.store import TensorStore


def open_checkpoint(path: str | Path) -> TensorStore:
    """The store for a checkpoint's path. Raises CheckpointError."""
    return Checkpoint.open(path)
