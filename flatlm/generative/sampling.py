"""From logits to a token: the largest, or one drawn by temperature, top-k and top-p. Deterministic by its seed."""

import math

import numpy as np
from numpy.typing import NDArray

from flatlm.errors import RuntimeFileError


class Sampler:
    """Picks tokens. Temperature 0 is the largest logit, the first of equals; else softmax(logits / temperature) is drawn from.

    `top_k` keeps the k most probable tokens; then `top_p` the fewest most probable ones whose probabilities reach p.
    One seed gives one sequence of draws.
    """

    def __init__(self, temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None, seed: int | None = None) -> None:
        if not (math.isfinite(temperature) and temperature >= 0):
            raise RuntimeFileError(f"temperature {temperature} is not possible: it is 0 (always the most probable token) or more")
        if top_k is not None and top_k < 1:
            raise RuntimeFileError(f"top-k {top_k} is not possible: it is 1 or more")
        if top_p is not None and not 0 < top_p <= 1:
            raise RuntimeFileError(f"top-p {top_p} is not possible: it is above 0, and at most 1")
        if seed is not None and seed < 0:
            raise RuntimeFileError(f"seed {seed} is not possible: it is 0 or more")
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self._random = np.random.default_rng(seed)

    def pick(self, logits: NDArray[np.floating]) -> int:
        """A token, from its logits [V]; RuntimeFileError if they are not numbers."""
        largest = int(np.argmax(logits))  # a NaN, where there is one
        if not math.isfinite(logits[largest]):
            raise RuntimeFileError(
                f"the model's logits are not finite: {logits[largest]} for token {largest}; `flatlm verify` shows since where"
            )
        if self.temperature == 0:
            return largest
        tokens, weights = self._candidates(logits.astype(np.float64))
        reach = np.cumsum(weights)
        drawn = np.searchsorted(reach, self._random.random() * reach[-1], side="right")
        return int(tokens[min(int(drawn), len(tokens) - 1)])

    def _candidates(self, logits: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """The tokens to draw from, and their probabilities up to a factor."""
        tokens = np.arange(len(logits))
        if self.top_k is not None and self.top_k < len(logits):
            tokens = _largest(logits, self.top_k)
        weights = np.exp((logits[tokens] - logits.max()) / self.temperature)
        if self.top_p is None or self.top_p == 1:
            return tokens, weights
        total = weights.sum()
        # Tokens below (1 - p) / n of the whole have less than 1 - p together: never needed to reach p, nor worth sorting.
        likely = np.flatnonzero(weights >= (1 - self.top_p) * total / len(weights))
        order = likely[np.argsort(-logits[tokens[likely]], kind="stable")]
        kept = int(np.searchsorted(np.cumsum(weights[order]), self.top_p * total)) + 1
        return tokens[order[:kept]], weights[order[:kept]]


def _largest(logits: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """The `count` tokens with the largest logits; of equal ones the first."""
    least = np.partition(logits, -count)[-count]
    above = np.flatnonzero(logits > least)
    equal = np.flatnonzero(logits == least)[: count - len(above)]
    return np.concatenate([above, equal])
