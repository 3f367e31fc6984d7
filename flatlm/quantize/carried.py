"""Weights that a checkpoint already holds as integers: what is known of them, and which schemes hold the same integers.

A stored weight is `integer * scale` with a scale for each row, or for each group of neighbouring columns of a row. A scheme holds it
unchanged where its integers are wide enough and its blocks lie within the groups: a group of 128 is four blocks of 32 with one scale.

- Scales per channel are float32 in the file, so that a float16, bfloat16 or float32 scale is kept as it is.
- Block scales are float16 in the file, and the runtime's CPU delegate narrows them to bfloat16 (encode.py says more). A carried scale is
  rounded to that, which moves a weight by at most 1/512 of itself. Encoding anew would move it by up to half a step, 1/14 of the block's
  largest, and change the integers that a calibration has chosen; so rounding is the more faithful, and the report says that it was done.
- Per channel, the runtime's own kernels (ai-edge-litert 2.3.0, measured without the delegate: -128 and -8 overflow there) take
  [-127, 127] and [-7, 7], as TFLite's specification says. The lowest integer of two's complement is moved one step up then: it is a
  handful of weights of a row, where encoding anew would move all of them. Blocks of int4 take -8 everywhere.
- A scale of 0 says that its weights are 0: they are stored as zeros with the smallest scale, since the runtime refuses 0.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch

from flatlm.quantize.schemes import BITS, Scheme

SMALLEST_CHANNEL_SCALE = 2.0**-100
SMALLEST_BLOCK_SCALE = 2.0**-17
"""From here on float16 has the 8 significant bits of bfloat16."""
LARGEST_BLOCK_SCALE = 65280.0


@dataclass(frozen=True, slots=True)
class IntegerRows:
    """Some rows of a stored weight: `integers` int8 [R, C], `scales` float32 [R, G], each for C / G neighbouring columns."""

    integers: torch.Tensor
    scales: torch.Tensor

    def values(self) -> torch.Tensor:
        """What they mean, float32 [R, C]."""
        return self.integers.to(torch.float32) * self.scales.repeat_interleave(self.integers.shape[1] // self.scales.shape[1], 1)


@dataclass(frozen=True, slots=True)
class StoredIntegers:
    """What a checkpoint stores for a whole weight.

    `block_size` columns share a scale; None: all of a row. `obstacle` is why no scheme can hold it (such as "asymmetric"), or None.
    `chosen`: not by the checkpoint's maker but by FlatLM, for the scheme at hand.
    `smallest_scale` and `largest_scale` leave out scales of 0; `exact_in_blocks`: rounding to a block's scale changes none.
    """

    bits: int
    block_size: int | None
    obstacle: str | None = None
    smallest_scale: float = 1.0
    largest_scale: float = 1.0
    exact_in_blocks: bool = True
    chosen: bool = False

    @classmethod
    def of(cls, scheme: Scheme, *, chosen: bool = False) -> Self:
        """Integers that were made for a scheme, and so fit it."""
        return cls(BITS[scheme.storage], scheme.block_size, chosen=chosen)

    def misfit(self, scheme: Scheme) -> str | None:
        """Why the scheme does not hold these integers; None where it does."""
        if self.obstacle:
            return self.obstacle
        if not scheme.quantized:
            return f"as {scheme.storage}"
        if BITS[scheme.storage] < self.bits:
            return f"{self.bits} bits to {scheme.storage}"
        if scheme.block_size is None:
            if self.block_size is not None:
                return f"groups of {self.block_size} to one scale a channel"
            return None if self.smallest_scale >= SMALLEST_CHANNEL_SCALE else "scales too small"
        if self.block_size is not None and self.block_size % scheme.block_size:
            return f"groups of {self.block_size} to blocks of {scheme.block_size}"
        return None if SMALLEST_BLOCK_SCALE <= self.smallest_scale <= self.largest_scale <= LARGEST_BLOCK_SCALE else "scales beyond float16"


def merge(parts: Sequence[StoredIntegers | None]) -> StoredIntegers | None:
    """What is known of a weight made of others, one below the other. None where none of them is stored as integers."""
    stored = [part for part in parts if part is not None]
    if not stored:
        return None
    first = stored[0]
    obstacle = next((part.obstacle for part in stored if part.obstacle), None)
    if len(stored) < len(parts):
        obstacle = obstacle or "merged with weights that are not quantized"
    if any(part.block_size != first.block_size for part in stored):
        obstacle = obstacle or "merged from different groups"
    return StoredIntegers(
        max(part.bits for part in stored),
        first.block_size,
        obstacle,
        min(part.smallest_scale for part in stored),
        max(part.largest_scale for part in stored),
        all(part.exact_in_blocks for part in stored),
    )


def concatenate(parts: Sequence[IntegerRows]) -> IntegerRows:
    """Rows one below the other, of parts whose groups are alike."""
    if len(parts) == 1:
        return parts[0]
    return IntegerRows(torch.cat([part.integers for part in parts]), torch.cat([part.scales for part in parts]))


def measure_scales(stored: StoredIntegers, scales: torch.Tensor) -> StoredIntegers:
    """The record with what its scales, all of them and finite, allow."""
    used = scales[scales != 0]
    if not used.numel():
        return stored
    exact = bool((block_scales(used).to(torch.float32) == used).all())
    return replace(stored, smallest_scale=float(used.min()), largest_scale=float(used.max()), exact_in_blocks=exact)


def block_scales(scales: torch.Tensor) -> torch.Tensor:
    """Scales as a block keeps them: rounded to bfloat16, then to float16."""
    return scales.to(torch.bfloat16).to(torch.float16)


def fit(rows: IntegerRows, scheme: Scheme) -> tuple[IntegerRows, int]:
    """The rows in the groups and the range of a scheme that holds them, and how many integers had to move one step up."""
    integers, scales, moved = rows.integers, rows.scales, 0
    groups = integers.shape[1] // (scheme.block_size or integers.shape[1])
    if (scales == 0).any():
        spread = scales.repeat_interleave(integers.shape[1] // scales.shape[1], 1)
        integers = integers.masked_fill(spread == 0, 0)
        scales = scales.masked_fill(scales == 0, SMALLEST_BLOCK_SCALE)
    if groups != scales.shape[1]:
        scales = scales.repeat_interleave(groups // scales.shape[1], 1)
    if scheme.block_size is None and (moved := int((integers < -scheme.levels).sum())):
        integers = integers.clamp_min(-scheme.levels)
    return IntegerRows(integers, scales), moved


@dataclass
class CarrySummary:
    """What became of the weights that a checkpoint holds as integers. `moved` is known once they are written."""

    carried: int = 0
    rounded: int = 0
    """Weights of those carried whose block scales are not exact in the file."""
    moved: int = 0
    """Integers moved from -128 to -127, or from -8 to -7."""
    re_encoded: Counter[str] = field(default_factory=Counter)

    def add(self, stored: StoredIntegers, scheme: Scheme) -> bool:
        """Count a weight, unless FlatLM itself chose its integers; True where they are stored as they are."""
        if stored.chosen:
            return True
        misfit = stored.misfit(scheme)
        if misfit is not None:
            self.re_encoded[misfit] += 1
            return False
        self.carried += 1
        self.rounded += scheme.block_size is not None and not stored.exact_in_blocks
        return True

    def __bool__(self) -> bool:
        return bool(self.carried or self.re_encoded)

    def __str__(self) -> str:
        """Such as "224 weights carried over unchanged, 3 re-encoded (asymmetric)"."""
        text = f"{self.carried} {'weight' if self.carried == 1 else 'weights'} carried over unchanged"
        notes = [f"the block scales of {self.rounded} rounded to bfloat16"] if self.rounded else []
        notes += [f"{self.moved} of their integers moved up by one into the runtime's range"] if self.moved else []
        text += f" ({', '.join(notes)})" if notes else ""
        return text + "".join(f", {count} re-encoded ({reason})" for reason, count in self.re_encoded.items())

    def to_dict(self) -> Mapping[str, object]:
        """Plain data for the manifest."""
        return {"carried": self.carried, "scales_rounded": self.rounded, "moved": self.moved, "re_encoded": dict(self.re_encoded)}
