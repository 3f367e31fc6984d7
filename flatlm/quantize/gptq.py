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

from flatlm.quantize.carried import IntegerRows, concatenate
from flatlm.quantize.scale_search import Range, search_scales, storable
from flatlm.quantize.schemes import Scheme

ELEMENTS_AT_ONCE = 1 << 21
"""Of a weight, whole rows of it: temporaries of 8 MB are kept by the allocator, where larger ones cost their page faults each time."""
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
    elimination = _Elimination.of(damped)
    parts, error = list[IntegerRows](), 0.0
    for rows in weight.split(max(1, ELEMENTS_AT_ONCE // weight.shape[1])):  # type: ignore[no-untyped-call]
        problem = _Problem(rows, damped, scheme, elimination)
        scales = problem.first_scales()
        integers = problem.one_by_one(scales)
        for _ in range(sweeps):
            scales = problem.refit(integers, scales)
            integers = problem.sweep(integers, scales)
        parts.append(IntegerRows(integers.to(torch.int8), scales))
        error += problem.error(integers, scales)
    return Solution(concatenate(parts), error)


def damp(hessian: Tensor, damping: float) -> Tensor:
    """H with a part of its mean diagonal added; the identity where the text never reached the layer."""
    mean = hessian.diagonal().mean()
    if not mean > 0:
        return torch.eye(len(hessian))
    return hessian + torch.eye(len(hessian)) * (damping * mean)


@dataclass(frozen=True)
class _Elimination:
    """In which order columns are rounded, and the upper Cholesky factor of H^-1 in that order."""

    order: Tensor
    factor: Tensor

    @classmethod
    def of(cls, hessian: Tensor) -> "_Elimination":
        order = torch.argsort(hessian.diagonal(), descending=True)
        return cls(order, _inverse_factor(hessian[order][:, order]))


class _Problem:
    """Some rows of a weight: they do not depend on one another. Columns are worked on as rows of transposed copies, which lie together."""

    def __init__(self, weight: Tensor, hessian: Tensor, scheme: Scheme, elimination: _Elimination | None = None) -> None:
        self.elimination = elimination or _Elimination.of(hessian)
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
        order, factor = self.elimination.order, self.elimination.factor
        weight, steps = self.weight[:, order], self.spread(scales)[:, order]
        integers = torch.empty_like(weight)
        for start in range(0, weight.shape[1], COLUMNS_AT_ONCE):
            stop = min(start + COLUMNS_AT_ONCE, weight.shape[1])
            columns, step = _turned(weight[:, start:stop]), _turned(steps[:, start:stop])
            rounded, errors = torch.empty_like(columns), torch.empty_like(columns)
            inside = factor[start:stop, start:stop]
            for at in range(stop - start):
                rounded[at] = (columns[at] / step[at]).round_().clamp_(*self.allowed)
                errors[at] = (columns[at] - rounded[at] * step[at]) / inside[at, at]
                columns[at + 1 :].addr_(inside[at, at + 1 :], errors[at], alpha=-1)
            integers[:, start:stop] = rounded.T
            weight[:, stop:] -= errors.T @ factor[start:stop, stop:]
        return integers[:, torch.argsort(order)]

    def sweep(self, integers: Tensor, scales: Tensor) -> Tensor:
        """Every column once, given all others."""
        steps, diagonal = self.spread(scales), self.hessian.diagonal()
        integers = integers.clone()
        gradient = (self.weight - integers * steps) @ self.hessian
        for start in range(0, integers.shape[1], COLUMNS_AT_ONCE):
            stop = min(start + COLUMNS_AT_ONCE, integers.shape[1])
            local, step = _turned(gradient[:, start:stop]), _turned(steps[:, start:stop])
            own, inside = _turned(integers[:, start:stop]), self.hessian[start:stop, start:stop]
            changes = torch.empty_like(own)
            for at in range(stop - start):
                best = (own[at] + local[at] / diagonal[start + at] / step[at]).round_().clamp_(*self.allowed)
                changes[at] = (best - own[at]) * step[at]
                own[at] = best
                local[at + 1 :].addr_(inside[at, at + 1 :], changes[at], alpha=-1)
            integers[:, start:stop] = own.T
            gradient -= changes.T @ self.hessian[start:stop]
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


def _turned(columns: Tensor) -> Tensor:
    """Columns [R, n] as rows [n, R] that lie together."""
    return columns.T.contiguous()


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
