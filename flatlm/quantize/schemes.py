"""How one weight is stored: the schemes as a table of frozen records. The encoding itself is in encode.py.

A weight is a matrix [R, C]: R output channels (rows), C inputs (columns). Importing this loads neither torch nor numpy.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from flatlm.errors import RecipeError

Storage = Literal["float32", "float16", "int8", "int4"]
Compute = Literal["float", "dynamic", "weight_only", "static"]

BITS: Mapping[Storage, int] = MappingProxyType({"float32": 32, "float16": 16, "int8": 8, "int4": 4})

# Symmetric: the integers are [-levels, levels], so that zero is exact and -128 (-8) is never used.
LEVELS: Mapping[Storage, int] = MappingProxyType({"int8": 127, "int4": 7})


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to store a weight, and what the runtime does with it.

    `block_size` is the number of neighbouring columns that share a float16 scale; None means one float32 scale for
    each row where `storage` is an integer, and no scales where it is a float. `compute` says how the runtime multiplies:
    "float" as it is, "dynamic" quantizes the activations to int8 as they come, "weight_only" dequantizes the weight, "static"
    takes and gives int8 activations of fixed ranges, which the recipe holds (activations.py): integers all the way.
    """

    name: str
    storage: Storage
    block_size: int | None = None
    compute: Compute = "float"

    @property
    def quantized(self) -> bool:
        """Whether the weight is stored as integers with scales."""
        return self.storage in LEVELS

    @property
    def four_bits(self) -> bool:
        """Whether its integers have 4 bits: those that methods choose; int8 is rounded to the nearest, as ever."""
        return self.storage == "int4"

    @property
    def levels(self) -> int:
        """The largest integer, 127 or 7; RecipeError for a float scheme, which has none."""
        if not self.quantized:
            raise RecipeError(f"scheme {self.name!r} stores floats, so it has no integer levels")
        return LEVELS[self.storage]

    def check(self, name: str, shape: Sequence[int]) -> None:
        """Raise RecipeError unless a weight of this shape can be stored so."""
        where = f"scheme {self.name!r} does not fit weight {name!r} of shape {list(shape)}"
        if not shape or min(shape) < 1:
            raise RecipeError(f"{where}: it needs at least one dimension and no empty one")
        if not self.quantized:
            return
        if len(shape) != 2:
            raise RecipeError(f"{where}: it needs a matrix [rows, columns]; use float32 or float16")
        columns = shape[1]
        if self.block_size is not None and columns % self.block_size:
            wider = [s.name for s in SCHEMES.values() if s.quantized and s.block_size and columns % s.block_size == 0]
            raise RecipeError(
                f"{where}: {columns} columns are not a multiple of {self.block_size}; use {_either([*wider, 'dynamic_int8'])}"
            )
        if self.storage == "int4" and columns % 2:
            raise RecipeError(f"{where}: two int4 share a byte, and {columns} columns are odd; use dynamic_int8")

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of the stored weight, without its scales."""
        return math.prod(shape) * BITS[self.storage] // 8

    def scales_shape(self, shape: Sequence[int]) -> tuple[int, ...] | None:
        """[R] (float32) for a scale per row, [R, C / block_size] (float16) for a scale per block, None for a float scheme."""
        if not self.quantized:
            return None
        rows, columns = shape
        return (rows,) if self.block_size is None else (rows, columns // self.block_size)

    def scales_nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of the scales: 4 for each row, or 2 for each block."""
        scales = self.scales_shape(shape)
        return 0 if scales is None else math.prod(scales) * (4 if self.block_size is None else 2)


SCHEMES: Mapping[str, Scheme] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            Scheme("float32", "float32"),
            Scheme("float16", "float16"),
            Scheme("dynamic_int8", "int8", compute="dynamic"),
            Scheme("weight_only_int8", "int8", compute="weight_only"),
            Scheme("static_int8", "int8", compute="static"),
            Scheme("dynamic_int4_block32", "int4", block_size=32, compute="dynamic"),
            Scheme("dynamic_int4_block128", "int4", block_size=128, compute="dynamic"),
            Scheme("dynamic_int4_channel", "int4", compute="dynamic"),
        )
    }
)


def get_scheme(name: str) -> Scheme:
    """The scheme of that name; RecipeError with the nearest names where there is none."""
    if name not in SCHEMES:
        raise unknown_name("scheme", name, SCHEMES)
    return SCHEMES[name]


def unknown_name(kind: str, name: object, allowed: Iterable[str]) -> RecipeError:
    """A RecipeError that says what was asked for, the nearest name, and every name that is allowed."""
    import difflib

    names = list(allowed)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return RecipeError(f"unknown {kind} {name!r}{hint} (allowed: {', '.join(names)})")


def _either(names: Sequence[str]) -> str:
    return " or ".join(names)
