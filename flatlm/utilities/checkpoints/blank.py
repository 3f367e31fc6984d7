"""A checkpoint that does not exist: random weights in the shapes that a configuration asks for, by a checkpoint's names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Self

import torch

from flatlm.utilities.checkpoints.files import TensorRecord

if TYPE_CHECKING:
    from flatlm.utilities.weights.slots import Part, Slot

DEFAULT_SPREAD = 0.02


class BlankStore:
    """A `TensorStore` that has what it is asked to `provide`: matrices normal with the standard deviation `spread`, norms 1, biases 0.

    Equal seeds give equal values, tensor by tensor.
    """

    def __init__(self, directory: Path, *, seed: int = 0, spread: float = DEFAULT_SPREAD) -> None:
        """`directory`: where the configuration is, for messages."""
        self.directory = directory
        self._seed, self._spread = seed, spread
        self._records: dict[str, TensorRecord] = {}
        self._constants: dict[str, float] = {}

    @property
    def tensors(self) -> Mapping[str, TensorRecord]:
        return MappingProxyType(self._records)

    def provide(self, slots: Iterable[Slot]) -> None:
        """Have all tensors that the slots are made of."""
        for slot in slots:
            for part in slot.parts:
                self._records.setdefault(part.tensor, TensorRecord(part.tensor, part.shape, torch.float32, self.directory))
                if (constant := _constant(slot, part)) is not None:
                    self._constants[part.tensor] = constant

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.read(name)[start:stop]

    def read(self, name: str) -> torch.Tensor:
        shape = self._records[name].shape
        if name in self._constants:
            return torch.full(shape, self._constants[name])
        digest = hashlib.sha256(f"{self._seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        return torch.randn(shape, generator=generator) * self._spread

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self._seed} {self._spread} {sorted(self._records)}".encode()).hexdigest()

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _constant(slot: Slot, part: Part) -> float | None:
    """What a norm's or a bias's numbers begin with; None: they are random."""
    if slot.name.endswith("bias"):
        return 0.0
    return 1.0 - part.offset if len(part.shape) == 1 else None
