"""Ratios of two subjects that took turns: their median over the rounds, and how sure it is.

The interval is that of order statistics: of n independent rounds, the number of ratios below the true median is binomial, so from the r-th
smallest to the r-th largest they enclose it with the probability 1 - 2 P(Bin(n, 1/2) < r), whatever their distribution
(J.-Y. Le Boudec, Performance Evaluation of Computer and Communication Systems, 2010, theorem 2.1; David and Nagaraja, Order
Statistics, 7.1). Rounds are few and a busy machine's are skewed: a t-interval asks for normal ones, a bootstrap's percentiles are too
narrow for samples this small. The price: fewer than 6 rounds give none at 95 %, and fewer than 9 one that a single bad round widens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median
from typing import Self

CONFIDENCE = 0.95
LEAST_ROUNDS = 6
"""For an interval; the extremes of fewer rounds enclose the median with less than that confidence."""


@dataclass(frozen=True)
class Ratio:
    """One subject's figure over the first one's."""

    median: float
    low: float | None
    """Of the interval that encloses it with at least 95 %; None where the rounds are too few to tell."""
    high: float | None
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float], firsts: Sequence[float]) -> Self:
        """From what each round gave for a subject, and for the first subject."""
        ratios = sorted(value / first for value, first in zip(values, firsts, strict=True))
        rank = interval_rank(len(ratios))
        low, high = (ratios[rank - 1], ratios[-rank]) if rank else (None, None)
        return cls(median(ratios), low, high, len(ratios))

    @property
    def distinguishable(self) -> bool:
        """Is it shown to differ from 1?"""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high

    @property
    def half_width(self) -> float:
        """Half of the interval, as a part of the median; infinite where there is none."""
        return (self.high - self.low) / 2 / self.median if self.low is not None and self.high is not None else float("inf")


def interval_rank(count: int, confidence: float = CONFIDENCE) -> int:
    """r: the r-th smallest and largest of so many values enclose the median with that confidence; 0 where not even the extremes do."""
    rank, outside = 0, 0.0
    while rank < count // 2:
        outside += 2 * comb(count, rank) / 2**count
        if outside > 1 - confidence:
            break
        rank += 1
    return rank
