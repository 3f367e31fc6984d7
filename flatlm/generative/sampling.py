"""From logits to a token: the most probable, or one drawn by temperature, top-k, top-p and min-p. Deterministic by its seed."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flatlm.errors import RuntimeFileError
from flatlm.generative.generation_config import GenerationConfig

Allowed = NDArray[np.bool_]
"""Of each token [V], whether it may come next."""


class TokenPicker(Protocol):
    """What chooses a text's tokens, one after the other."""

    def pick(self, logits: NDArray[Any], allowed: Allowed | None = None) -> int: ...
    def accept(self, token: int) -> None: ...


class Sampler:
    """Picks one text's tokens as a configuration says; greedily without one.

    First the logits x of tokens that the prompt or the answer has become x / repetition_penalty, or x * repetition_penalty where they are
    negative; then x - frequency_penalty * count - presence_penalty * (count > 0) with the answer's counts, as OpenAI documents it, and
    logit_bias is added. Tokens that are not allowed are left out. At temperature 0 the largest is picked, of equal ones the first; else
    softmax(x / temperature) is drawn from: `top_k` keeps the k most probable tokens; then `top_p` the fewest most probable ones whose
    probabilities reach p; then `min_p` those with at least that part of the largest probability. One seed gives one sequence of draws.
    """

    def __init__(self, config: GenerationConfig | None = None, prompt_ids: Sequence[int] = ()) -> None:
        self.config = config = config or GenerationConfig()
        self._greedy = config.temperature == 0
        self._counts = bool(config.presence_penalty or config.frequency_penalty or config.repetition_penalty != 1)
        self._adjusts = self._counts or bool(config.logit_bias)
        self._prompt = prompt_ids if config.repetition_penalty != 1 else ()
        self._offsets: NDArray[np.float64] | None = None  # [V], what is added for the penalties and the bias
        self._seen: Allowed  # [V], the tokens of the prompt and the answer
        self._random = np.random.default_rng(config.seed)

    def pick(self, logits: NDArray[Any], allowed: Allowed | None = None) -> int:
        """A token, from its logits [V]; RuntimeFileError if they are not numbers, or leave nothing that is allowed."""
        largest = int(np.argmax(logits))  # a NaN, where there is one
        if not math.isfinite(logits[largest]):
            raise RuntimeFileError(
                f"the model's logits are not finite: {logits[largest]} for token {largest}; `flatlm verify` shows since where"
            )
        if self._greedy and not self._adjusts and (allowed is None or allowed[largest]):
            return largest
        values = self._adjusted(logits, allowed)
        if self._greedy:
            return int(np.argmax(values))
        tokens, weights = self._candidates(values)
        reach = np.cumsum(weights)
        drawn = np.searchsorted(reach, self._random.random() * reach[-1], side="right")
        return int(tokens[min(int(drawn), len(tokens) - 1)])

    def accept(self, token: int) -> None:
        """Tells it that the answer goes on with this token, which need not be what it picked."""
        if self._counts and self._offsets is not None:
            first = not self._made[token]
            self._offsets[token] -= self.config.frequency_penalty + (self.config.presence_penalty if first else 0)
            self._made[token] = self._seen[token] = True

    def _adjusted(self, logits: NDArray[Any], allowed: Allowed | None) -> NDArray[np.float64]:
        """A copy, with what the configuration changes."""
        values: NDArray[np.float64] = logits.astype(np.float64)
        if self._adjusts:
            if self._offsets is None:
                self._begin(len(values))
            assert self._offsets is not None
            if (penalty := self.config.repetition_penalty) != 1:
                seen = values[self._seen]
                with np.errstate(over="ignore"):  # of a penalty next to 0; what is infinite compares with nothing
                    values[self._seen] = np.nan_to_num(np.where(seen > 0, seen / penalty, seen * penalty))
            values += self._offsets
        if allowed is not None:
            values[~allowed] = -np.inf
            if not math.isfinite(values.max()):
                raise RuntimeFileError("the model gives no token that the grammar allows a probability")
        return values

    def _begin(self, size: int) -> None:
        """Makes the arrays for a vocabulary of that size."""
        if unknown := [token for token in self.config.logit_bias if token >= size]:
            raise RuntimeFileError(f"logit_bias names token {unknown[0]}, and the model's vocabulary has {size}")
        self._offsets = np.zeros(size)
        self._made, self._seen = np.zeros(size, bool), np.zeros(size, bool)
        self._offsets[list(self.config.logit_bias)] = list(self.config.logit_bias.values())
        self._seen[list(self._prompt)] = True

    def _candidates(self, logits: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """The tokens to draw from, and their probabilities up to a factor."""
        tokens, (top_k, top_p) = np.arange(len(logits)), (self.config.top_k, self.config.top_p)
        if top_k is not None and top_k < len(logits):
            tokens = largest(logits, top_k)
        with np.errstate(over="ignore"):  # of a temperature next to 0: all but the most probable have the weight 0
            weights = np.exp((logits[tokens] - logits.max()) / self.config.temperature)
        if top_p is not None and top_p != 1:
            total = weights.sum()
            # Tokens below (1 - p) / n of the whole have less than 1 - p together: never needed to reach p, nor worth sorting.
            likely = np.flatnonzero(weights >= (1 - top_p) * total / len(weights))
            order = likely[np.argsort(-logits[tokens[likely]], kind="stable")]
            kept = order[: int(np.searchsorted(np.cumsum(weights[order]), top_p * total)) + 1]
            tokens, weights = tokens[kept], weights[kept]
        if self.config.min_p:
            probable = weights >= self.config.min_p  # the most probable token's weight is 1
            tokens, weights = tokens[probable], weights[probable]
        return tokens, weights


def largest(logits: NDArray[Any], count: int) -> NDArray[np.intp]:
    """The `count` tokens with the largest logits, in no order; of equal ones the first."""
    least = np.partition(logits, -count)[-count]
    above = np.flatnonzero(logits > least)
    equal = np.flatnonzero(logits == least)[: count - len(above)]
    return np.concatenate([above, equal])
