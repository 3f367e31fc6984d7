"""What every form of checkpoint offers: its tensors by the names of the original, any rows of them, and nothing whole in memory.

Forms stack: an adapter merged into a quantized checkpoint is a store over a store over files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch

from flatlm.utilities.checkpoints.files import TensorRecord


class TensorStore(Protocol):
    """The tensors of a checkpoint, whatever its form. Several threads may read at once."""

    @property
    def directory(self) -> Path:
        """What the user named: the directory, or the one file that is the checkpoint. Errors begin with it."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorRecord]:
        """Every tensor's shape, dtype and file, by the name that the original checkpoint would give it."""
        ...

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop) of the first dimension, in the record's dtype. Raises CheckpointError where they cannot be read."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor."""
        ...

    def fingerprint(self) -> str:
        """A SHA-256, in hexadecimal, that tells checkpoints apart without reading them whole."""
        ...

    def close(self) -> None:
        """Close its files. Closing twice does no harm."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
