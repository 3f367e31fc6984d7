"""Better scales without calibration text: the scale of the least squared error, and half-quadratic splitting.

Groups are rows of a matrix [N, g], each with one scale; integers are those of a range [lowest, highest]. Everything is float32.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from flatlm.errors import RecipeError
from flatlm.quantize.carried import IntegerRows, block_scales
from flatlm.quantize.encode import SMALLEST_SCALE
from flatlm.quantize.method import Rounding
from flatlm.quantize.schemes import Scheme

RATIOS = torch.linspace(1.0, 0.4, 25)
"""Of the scale that holds a group's largest weight: what the search tries. A lower one clips, and rounds the rest finer."""
REFINEMENTS = 2
HALF_QUADRATIC_STEPS = 20
SHRINK_POWER = 0.7
"""The p of the l_p norm that weighs large errors less (HQQ, Badri and Shaji 2023)."""


def round_rows(rows: Tensor, scheme: Scheme, rounding: Rounding) -> IntegerRows:
    """Rows [R, C] float32, all finite, by a rounding that needs no text, for a quantized scheme. A row's result depends on nothing else."""
    groups = rows.reshape(-1, scheme.block_size or rows.shape[1])
    match rounding:
        case "scale_search":
            scales = search_scales(groups, scheme)
        case "half_quadratic":
            scales = half_quadratic_scales(groups, scheme)
        case _:
            raise RecipeError(f"rounding {rounding!r} is not one that needs no text")
    integers = round_to(groups, scales, Range.of(scheme))
    return IntegerRows(integers.to(torch.int8).reshape(rows.shape), scales.reshape(len(rows), -1))


def storable(scales: Tensor, scheme: Scheme) -> Tensor:
    """Scales as the file keeps them: float32 per channel, rounded to bfloat16 per block. RecipeError for one beyond float16."""
    if scheme.block_size is None:
        return scales
    kept = block_scales(scales.clamp_min(SMALLEST_SCALE[torch.float16])).to(torch.float32)
    if kept.isinf().any():
        raise RecipeError("a block of weights needs a scale beyond float16 (65504); use a per-channel scheme")
    return kept


class Range(NamedTuple):
    """The integers that may be stored."""

    lowest: int
    highest: int

    @classmethod
    def of(cls, scheme: Scheme) -> "Range":
        """[-levels, levels]; the runtime's kernels for blocks of int4 take -8 too (carried.py says which do not)."""
        return cls(-scheme.levels - (scheme.storage == "int4" and scheme.block_size is not None), scheme.levels)


def largest_scales(groups: Tensor, integers: Range) -> Tensor:
    """The scale [N] that holds each group's largest weight."""
    return (groups.abs().amax(1) / integers.highest).clamp_min(SMALLEST_SCALE[torch.float32])


def round_to(groups: Tensor, scales: Tensor, integers: Range) -> Tensor:
    """The nearest integers [N, g] for scales [N], as floats."""
    return (groups / scales[:, None]).round_().clamp_(*integers)


def search_scales(groups: Tensor, scheme: Scheme, importance: Tensor | None = None) -> Tensor:
    """Storable scales [N] of the least squared error; columns weigh as `importance` [g] or [N, g] says (the diagonal of a layer's Hessian).

    The best of RATIOS, then by turns the nearest integers and the scale that suits them best, (w . q) / (q . q). The scale that holds the
    largest weight is among those tried, so that no group comes out worse than by rounding to the nearest.
    """
    allowed = Range.of(scheme)
    weight = torch.ones(groups.shape[1]) if importance is None else importance
    largest = largest_scales(groups, allowed)
    best, least = largest, torch.full_like(largest, torch.inf)
    for ratio in RATIOS:
        scales = storable(largest * ratio, scheme)
        for _ in range(1 + REFINEMENTS):
            integers = round_to(groups, scales, allowed)
            error = ((groups - integers * scales[:, None]).square_() * weight).sum(1)
            best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
            scales = storable(_least_squares(groups, integers, weight, scales), scheme)
    return best


def half_quadratic_scales(groups: Tensor, scheme: Scheme) -> Tensor:
    """Storable scales [N] that make the l_p norm (p < 1) of the error small: outliers weigh less than under least squares.

    Half-quadratic splitting as HQQ has it, for a scale in the place of a zero point: by turns the integers, the part of the error that is
    let go (a generalised soft threshold), and the scale that fits the rest.
    """
    allowed = Range.of(scheme)
    scales = search_scales(groups, scheme)
    best, least = scales, torch.full_like(scales, torch.inf)
    spread = groups.square().mean(1, keepdim=True).sqrt().clamp_min(SMALLEST_SCALE[torch.float32])
    beta = 10.0
    for _ in range(1 + HALF_QUADRATIC_STEPS):
        kept = storable(scales, scheme)  # judged as it is stored, and searched on as it is
        loss = _power(groups - round_to(groups, kept, allowed) * kept[:, None])
        best, least = torch.where(loss < least, kept, best), torch.minimum(loss, least)
        integers = round_to(groups, scales, allowed)
        error = (groups - integers * scales[:, None]) / spread
        size = error.abs().clamp_min(1e-12)
        let_go = error.sign() * (size - size.pow(SHRINK_POWER - 1) / beta).clamp_min(0.0) * spread
        scales = _least_squares(groups - let_go, integers, torch.ones(groups.shape[1]), scales)
        beta *= 1.2
    return best


def _power(error: Tensor) -> Tensor:
    return error.abs().pow(SHRINK_POWER).sum(1)


def _least_squares(groups: Tensor, integers: Tensor, weight: Tensor, otherwise: Tensor) -> Tensor:
    """The scale (w . q) / (q . q) of each group; `otherwise` where all integers are 0 or it would not be positive."""
    weighted = integers * weight
    below = (weighted * integers).sum(1)
    scales = (weighted * groups).sum(1) / below.clamp_min(1e-30)
    return torch.where((below > 0) & (scales > SMALLEST_SCALE[torch.float32]), scales, otherwise)
