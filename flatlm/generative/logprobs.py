"""How probable a token was, and which others were."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatlm.generative.sampling import largest
from flatlm.utilities.tokenizing.vocabulary import Vocabulary


@dataclass(frozen=True)
class TokenLogprob:
    """A token that was picked, with the natural logarithm of its probability in the model's own distribution: at temperature 1,
    without penalties, bias and grammar.
    """

    token_id: int
    text: str
    """With U+FFFD for bytes that are no whole character."""
    bytes: bytes
    logprob: float
    top: tuple["TokenLogprob", ...] = ()
    """The most probable tokens, the first one first."""


def token_logprob(logits: NDArray[Any], token: int, count: int, vocabulary: Vocabulary) -> TokenLogprob:
    """Of a token, from the logits [V] that it was picked from, with those of the `count` most probable ones."""
    values = logits.astype(np.float64)
    peak = values.max()
    values -= peak + np.log(np.exp(values - peak).sum())
    best = largest(values, min(count, len(values))) if count else np.empty(0, np.intp)
    order = best[np.argsort(-values[best], kind="stable")].tolist()

    def told(i: int, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        return TokenLogprob(i, vocabulary.text(i), vocabulary.token_bytes(i), float(values[i]), top)

    return told(token, tuple(map(told, order)))
