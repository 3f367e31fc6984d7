"""Weights that are at hand, as the sources that the linker reads."""

from dataclasses import dataclass

from torch import Tensor

from flatlm.quantize.carried import IntegerRows, StoredIntegers
from flatlm.quantize.schemes import Scheme


@dataclass(frozen=True)
class InMemory:
    """A weight or a bias of floats, [R, C] or [R]; `where` is what errors call it."""

    values: Tensor
    where: str = "memory"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.values[start:stop]

    def origin(self, row: int) -> str:
        return self.where


@dataclass(frozen=True)
class IntegersInMemory:
    """A weight [R, C] whose integers were made for the very scheme that it is stored by."""

    held: IntegerRows
    scheme: Scheme
    where: str = "memory"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.held.integers.shape)

    def rows(self, start: int, stop: int) -> Tensor:
        """What the integers mean."""
        return self.integer_rows(start, stop).values()

    def stored_integers(self) -> StoredIntegers:
        return StoredIntegers.of(self.scheme)

    def integer_rows(self, start: int, stop: int) -> IntegerRows:
        return IntegerRows(self.held.integers[start:stop], self.held.scales[start:stop])

    def origin(self, row: int) -> str:
        return self.where
