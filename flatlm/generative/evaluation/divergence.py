"""Figures of next-token distributions, from their logits [..., V]; in float64, since small ones are differences of large ones."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Logarithms of the probabilities, [..., V]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def kl_divergence(expected: NDArray[Any], got: NDArray[Any]) -> NDArray[np.float64]:
    """Sum of p (log p - log q) over V, in nats, for logits of p (`expected`) and of q; infinite where those of q are not finite."""
    with np.errstate(invalid="ignore"):
        log_p, log_q = log_softmax(expected), log_softmax(got)
        divergence = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    return np.where(np.isfinite(got).all(-1), np.maximum(divergence, 0.0), np.inf)


def negative_log_likelihood(logits: NDArray[Any], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each target, in nats, for logits [n, V] and targets [n]; infinite where the logits are not finite.

    Exponentials are of float32, an error of 1e-7; their sums are not.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        largest = logits.max(-1, keepdims=True)
        total = np.exp(logits - largest).sum(-1, dtype=np.float64)
        chosen = np.take_along_axis(logits, targets[:, None], -1)[:, 0].astype(np.float64)
        nll = np.log(total) + largest[:, 0] - chosen
    return np.where(np.isfinite(total) & np.isfinite(chosen), nll, np.inf)
