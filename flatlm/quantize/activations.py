"""What a static recipe knows of a layer's activations: their ranges, and the one formula that makes a scale and a zero point of them.

A range is widened to hold 0, so that zero (padding, an expert that was not chosen) stays exactly zero. With low <= 0 <= high:

    scale      = max((high - low) / 255, 2**-24)      rounded to float32, as the file keeps it
    zero_point = round_half_to_even(-128 - low / scale), within [-128, 127]
    integer    = clamp(round(x / scale) + zero_point, -128, 127)      what the runtime does
    decoded    = (integer - zero_point) * scale

2**-24 times the smallest scale of a weight (encode.py) is still a normal float32: the scale of a bias is that product.
Importing this loads neither torch nor numpy.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from flatlm.errors import RecipeError

LOWEST, HIGHEST = -128, 127
SMALLEST_ACTIVATION_SCALE = 2.0**-24


@dataclass(frozen=True, slots=True)
class Affine:
    """int8 per tensor: a number is (integer - zero_point) * scale. The scale is a float32, whatever Python calls it."""

    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True)
class ActivationRange:
    """The least and the greatest number that were seen. RecipeError where they are not finite float32 numbers in that order."""

    low: float
    high: float

    def __post_init__(self) -> None:
        for value in (self.low, self.high):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > 3e38:
                raise RecipeError(f"activation range: {value!r} is not a finite number")
        if self.low > self.high:
            raise RecipeError(f"activation range: the lowest, {self.low!r}, is above the highest, {self.high!r}")

    def affine(self) -> Affine:
        """The scale and zero point that int8 needs to hold the range; the formula is the module's."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = max(_float32(high / 255 - low / 255), SMALLEST_ACTIVATION_SCALE)
        return Affine(scale, min(max(round(LOWEST - low / scale), LOWEST), HIGHEST))

    def union(self, other: "ActivationRange") -> "ActivationRange":
        """The range that holds both."""
        return ActivationRange(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True, slots=True)
class LayerRanges:
    """The ranges of what a linear reads and of what it gives, bias included."""

    input: ActivationRange
    output: ActivationRange

    def union(self, other: "LayerRanges") -> "LayerRanges":
        """The ranges that hold both layers', or one layer's on both texts."""
        return LayerRanges(self.input.union(other.input), self.output.union(other.output))

    def to_dict(self) -> dict[str, list[float]]:
        """Plain data for JSON: {"input": [low, high], "output": [low, high]}; `from_dict` reads it back."""
        return {"input": [self.input.low, self.input.high], "output": [self.output.low, self.output.high]}

    @classmethod
    def from_dict(cls, name: str, data: object) -> Self:
        """What `to_dict` wrote for the weight of that name; RecipeError that names it for anything else."""
        if not isinstance(data, Mapping) or set(data) != {"input", "output"}:
            raise RecipeError(f"recipe activations: {name!r} must be a table of 'input' and 'output', not {data!r}")
        return cls(_range(name, "input", data["input"]), _range(name, "output", data["output"]))


def _range(name: str, side: str, data: Any) -> ActivationRange:
    if not isinstance(data, list | tuple) or len(data) != 2:
        raise RecipeError(f"recipe activations: the {side} of {name!r} must be [lowest, highest], not {data!r}")
    try:
        return ActivationRange(data[0], data[1])
    except RecipeError as error:
        raise RecipeError(f"recipe activations: the {side} of {name!r}: {error}") from error


def _float32(value: float) -> float:
    """The nearest float32."""
    nearest: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return nearest
