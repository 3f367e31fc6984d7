"""Figures of each token that was foretold, and what they come to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOKEN = np.dtype(
    [
        ("nll", "f8"),
        ("reference_nll", "f8"),
        ("kl", "f8"),
        ("kl_missed", "f8"),
        ("kl_most", "f8"),
        ("top1", "?"),
        ("top5", "?"),
    ]
)
"""Of one token, in nats. nll: of the true token, by the file. kl: of the file's distribution from the reference's. Of a reference whose
distributions are kept in part: kl_missed, how much less the KL is for that, where it is known; kl_most, what it is at most. top1: do
both find the same token likeliest; top5: is the reference's likeliest among the file's first five."""
TOP = 5
LEAST_CLUSTERS = 2
Tokens = NDArray[np.void]


@dataclass(frozen=True)
class Divergence:
    """How far a file is from its reference, over the same tokens. KL in nats, of the file's distribution from the reference's."""

    reference_perplexity: float
    perplexity_ratio: float
    """The file's perplexity over the reference's."""
    perplexity_ratio_standard_error: float
    """Of the paired differences, those of a window taken together since they are not independent."""
    mean_kl: float
    median_kl: float
    p99_kl: float
    max_kl: float
    top1_agreement: float
    top5_agreement: float
    """How often the reference's likeliest token is among the file's first five."""


def perplexity(nll_per_token: float) -> float:
    """Infinite, rather than an error, where it is beyond any number."""
    with np.errstate(over="ignore"):
        return float(np.exp(np.float64(nll_per_token)))


def divergence(windows: Sequence[Tokens]) -> Divergence:
    """Of all windows' tokens, which have been scored against a reference."""
    tokens = np.concatenate(windows)
    kl = tokens["kl"]
    difference = tokens["nll"] - tokens["reference_nll"]
    with np.errstate(invalid="ignore"):  # of a file that gives no numbers
        ratio = perplexity(float(difference.mean()))
        return Divergence(
            perplexity(float(tokens["reference_nll"].mean())),
            ratio,
            ratio * standard_error([window["nll"] - window["reference_nll"] for window in windows]),
            float(kl.mean()),
            float(np.median(kl)),
            float(np.quantile(kl, 0.99)),
            float(kl.max()),
            float(tokens["top1"].mean()),
            float(tokens["top5"].mean()),
        )


def standard_error(clusters: Sequence[NDArray[Any]]) -> float:
    """Of the mean over all values, where values of one cluster may depend on each other.

    The ratio estimator's linearized variance: G / (G - 1) * sum over clusters of (sum of x - mean)^2 / n^2 (Cochran, Sampling Techniques,
    1977, eq. 9A.5 without the finite population). Values of a single cluster count as independent.
    """
    values = np.concatenate(clusters)
    count, mean = len(values), values.mean()
    if len(clusters) < LEAST_CLUSTERS:
        return float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0
    sums = np.array([(cluster - mean).sum() for cluster in clusters])
    groups = len(clusters)
    return float(np.sqrt(groups / (groups - 1) * (sums**2).sum()) / count)
