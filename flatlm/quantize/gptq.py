"""Integers that keep what a layer computes on calibration text: GPTQ, refined by coordinate descent.

For a weight W [R, C] and inputs x, the integers and scales are sought that make |W x - (s q) x|^2 small over the text, which needs only
H = mean of x x^T [C, C]: the error is the sum over rows of e H e^T with e = w - s q.

- **GPTQ** (Frantar et al. 2022): columns are rounded one after the other, the most used first; the error of each is made good by those
  that are still free, along the rows of the Cholesky factor of H^-1. The scales are fixed beforehand (search_scales with H's diagonal), so
  that the order of columns may cross blocks.
- **Coordinate descent** (as in QuantEase, Behdin et al. 2023): given all other integers, a column's best is the nearest to
  s q_j + (e H)_j / H_jj. Each sweep makes the error smaller, or leaves it.
- **Scales** in between: given the integers, a block's best scale is s + (q . g) / (q . H q) with g = (e H) on its columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flatlm.quantize.carried import IntegerRows
from flatlm.quantize.scale_search import Range, search_scales, storable
from flatlm.quantize.schemes import Scheme

COLUMNS_AT_ONCE = 64
"""Columns whose errors are passed on at once: within them one by one."""
DAMPING = 0.01
"""Of H's mean diagonal, added to it, so that columns that the text hardly uses stay near their weights (Frantar et al. 2022)."""
SWEEPS = 4
CARRIED_SHARE = 0.5
MOST_DAMPING = 10.0


@dataclass(frozen=True)
class Solution:
    """Integers int8 [R, C] and scales float32 [R, G]; `error` is e H e^T summed over rows."""

    rows: IntegerRows
    error: float


def carry_error(weight: Tensor, hessian: Tensor, missing: Tensor, share: float = CARRIED_SHARE) -> Tensor:
    """The weight [R, C] that makes good what the layers before have lost: W + share * W M H^-1.

    `missing` M = mean of (x - y) y^T and `hessian` H = mean of y y^T, where y [C] is what the layer reads after the layers before were
    quantized, and x what it would read otherwise. A share of 1 is the least-squares answer on the text (as in GPTAQ, Li et al. 2025); half
    of it did better on other text.
    """
    lower = _factor(damp(hessian, DAMPING))
    return weight + share * torch.cholesky_solve((weight @ missing).T, lower).T


def solve(weight: Tensor, hessian: Tensor, scheme: Scheme, *, sweeps: int = SWEEPS, damping: float = DAMPING) -> Solution:
    """The integers of a weight [R, C] float32 under `hessian` [C, C], for a quantized scheme.

    Scales are ones that the file can hold: float32 per channel; per block rounded to bfloat16.
    """
    damped = damp(hessian, damping)
    problem = _Problem(weight, damped, scheme)
    scales = problem.first_scales()
    integers = problem.one_by_one(scales)
    for _ in range(sweeps):
        scales = problem.refit(integers, scales)
        integers = problem.sweep(integers, scales)
    error = problem.error(integers, scales)
    return Solution(IntegerRows(integers.to(torch.int8), scales), error)


def damp(hessian: Tensor, damping: float) -> Tensor:
    """H with a part of its mean diagonal added; the identity where the text never reached the layer."""
    mean = hessian.diagonal().mean()
    if not mean > 0:
        return torch.eye(len(hessian))
    return hessian + torch.eye(len(hessian)) * (damping * mean)


class _Problem:
    def __init__(self, weight: Tensor, hessian: Tensor, scheme: Scheme) -> None:
        self.weight, self.hessian, self.scheme, self.allowed = weight, hessian, scheme, Range.of(scheme)
        self.size = scheme.block_size or weight.shape[1]
        self.groups = weight.shape[1] // self.size

    def spread(self, scales: Tensor) -> Tensor:
        """Scales [R, G] for every column [R, C]."""
        return scales.repeat_interleave(self.size, 1)

    def first_scales(self) -> Tensor:
        importance = self.hessian.diagonal().reshape(self.groups, self.size).repeat(len(self.weight), 1)
        found = search_scales(self.weight.reshape(-1, self.size), self.scheme, importance)
        return found.reshape(len(self.weight), self.groups)

    def one_by_one(self, scales: Tensor) -> Tensor:
        """GPTQ: integers [R, C] as floats, for fixed scales."""
        order = torch.argsort(self.hessian.diagonal(), descending=True)
        factor = _inverse_factor(self.hessian[order][:, order])
        weight, steps = self.weight[:, order].clone(), self.spread(scales)[:, order]
        integers = torch.empty_like(weight)
        for start in range(0, weight.shape[1], COLUMNS_AT_ONCE):
            stop = min(start + COLUMNS_AT_ONCE, weight.shape[1])
            errors = torch.empty(len(weight), stop - start)
            for column in range(start, stop):
                step = steps[:, column]
                rounded = (weight[:, column] / step).round().clamp(*self.allowed)
                integers[:, column] = rounded
                error = (weight[:, column] - rounded * step) / factor[column, column]
                weight[:, column + 1 : stop] -= error[:, None] * factor[column, column + 1 : stop]
                errors[:, column - start] = error
            weight[:, stop:] -= errors @ factor[start:stop, stop:]
        return integers[:, torch.argsort(order)]

    def sweep(self, integers: Tensor, scales: Tensor) -> Tensor:
        """Every column once, given all others."""
        steps, diagonal = self.spread(scales), self.hessian.diagonal()
        integers = integers.clone()
        gradient = (self.weight - integers * steps) @ self.hessian
        for start in range(0, integers.shape[1], COLUMNS_AT_ONCE):
            stop = min(start + COLUMNS_AT_ONCE, integers.shape[1])
            local = gradient[:, start:stop].clone()
            changes = torch.zeros_like(local)
            inside = self.hessian[start:stop, start:stop]
            for column in range(start, stop):
                step, at = steps[:, column], column - start
                best = (integers[:, column] + local[:, at] / diagonal[column] / step).round_().clamp_(*self.allowed)
                change = (best - integers[:, column]) * step
                integers[:, column] = best
                changes[:, at] = change
                local -= change[:, None] * inside[at]
            gradient -= changes @ self.hessian[start:stop]
        return integers

    def refit(self, integers: Tensor, scales: Tensor) -> Tensor:
        """The best scale of each block in turn, for these integers."""
        scales = scales.clone()
        gradient = (self.weight - integers * self.spread(scales)) @ self.hessian
        for group in range(self.groups):
            at = slice(group * self.size, (group + 1) * self.size)
            own = integers[:, at]
            curvature = ((own @ self.hessian[at, at]) * own).sum(1)
            better = scales[:, group] + (own * gradient[:, at]).sum(1) / curvature.clamp_min(1e-30)
            better = storable(better, self.scheme)
            better = torch.where((curvature > 0) & (better > 2.0**-100), better, scales[:, group])
            gradient -= (own * (better - scales[:, group])[:, None]) @ self.hessian[at]
            scales[:, group] = better
        return scales

    def error(self, integers: Tensor, scales: Tensor) -> float:
        error = self.weight - integers * self.spread(scales)
        return float(((error @ self.hessian) * error).sum())


def _inverse_factor(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor of H^-1."""
    return _factor(torch.cholesky_inverse(_factor(hessian))).T


def _factor(matrix: Tensor) -> Tensor:
    """The lower Cholesky factor; with more damping where float32 does not see the matrix as positive definite."""
    extra = 0.0
    while True:
        lower: Tensor
        lower, failed = torch.linalg.cholesky_ex(matrix + torch.eye(len(matrix)) * (extra * matrix.diagonal().mean()))
        if not failed:
            return lower
        extra = max(extra * 10, 1e-4)
        if extra > MOST_DAMPING:
            raise ArithmeticError("the matrix is not positive definite")
