"""A reference's next-token distributions in bounded space: the k likeliest tokens of each, and how much is left for the rest."""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flatlm.generative.evaluation.divergence import kl_divergence, log_softmax, negative_log_likelihood
from flatlm.generative.evaluation.scores import TOKEN, TOP, Tokens

_SMALLEST = np.finfo(np.float64).tiny


def record_type(top: int) -> np.dtype[Any]:
    """Of one position. `ids` and `log_p`, from the likeliest; `rest`: the mass of all others; `rest_log`: their sum of p log p."""
    return np.dtype([("ids", "i4", (top,)), ("log_p", "f4", (top,)), ("rest", "f8"), ("rest_log", "f8"), ("nll", "f8")])


@dataclass(frozen=True)
class Distributions:
    """Of n positions: `records` [n] of `record_type(top)`."""

    records: Tokens

    @classmethod
    def of(cls, logits: NDArray[np.float32], targets: NDArray[np.int64], top: int) -> Self:
        """From whole logits [n, V], with top <= V, and the true tokens [n]."""
        first = np.argpartition(logits, logits.shape[-1] - top, axis=-1)[:, logits.shape[-1] - top :]
        log_p = log_softmax(logits)
        order = np.lexsort((first, -np.take_along_axis(log_p, first, -1)), axis=-1)  # of equal ones the smaller id
        ids = np.take_along_axis(first, order, -1)
        records = np.zeros(len(logits), record_type(top))
        records["ids"], records["log_p"] = ids, np.take_along_axis(log_p, ids, -1)
        records["nll"] = negative_log_likelihood(logits, targets)
        mass = np.exp(log_p)
        np.put_along_axis(mass, ids, 0.0, -1)
        records["rest"] = mass.sum(-1)
        mass *= np.where(mass > 0, log_p, 0.0)
        records["rest_log"] = mass.sum(-1)
        return cls(records)

    def score(self, logits: NDArray[np.float32], targets: NDArray[np.int64]) -> Tokens:
        """The file's logits [n, V] against these: `TOKEN` [n].

        The KL is that of both distributions with their rests as one token each, which is never more than the true one (the data
        processing inequality), and equal to it where the rest is nothing. kl_most takes for each token of the rest the file's least
        probability: never less than the true KL. kl_missed is not known here (NaN).
        """
        found = np.zeros(len(logits), TOKEN)
        ids, log_p = self.records["ids"], self.records["log_p"].astype(np.float64)
        found["nll"], found["reference_nll"] = negative_log_likelihood(logits, targets), self.records["nll"]
        found["top1"], found["top5"] = _agreement(ids[:, 0], logits)
        found["kl_missed"] = np.nan
        finite = np.isfinite(logits).all(-1)
        with np.errstate(invalid="ignore"):
            log_q = log_softmax(logits)
            known = (np.exp(log_p) * (log_p - np.take_along_axis(log_q, ids, -1))).sum(-1)
            rest_q = np.exp(log_q)
            np.put_along_axis(rest_q, ids, 0.0, -1)
            rest_p, all_q = self.records["rest"], np.maximum(rest_q.sum(-1), _SMALLEST)
            coarse = known + rest_p * (np.log(np.maximum(rest_p, _SMALLEST)) - np.log(all_q))
            most = known + self.records["rest_log"] - rest_p * log_q.min(-1)
        exact = rest_p == 0
        found["kl"] = np.where(finite, np.maximum(np.where(exact, known, coarse), 0.0), np.inf)
        found["kl_most"] = np.where(finite, np.maximum(np.where(exact, known, most), found["kl"]), np.inf)
        return found


def score_whole(
    reference: NDArray[np.float32], kept: Distributions | None, logits: NDArray[np.float32], targets: NDArray[np.int64]
) -> Tokens:
    """The file's logits against the reference's, both whole, [n, V]: `TOKEN` [n]. kl_missed: how much less it is by what was `kept`."""
    found = np.zeros(len(logits), TOKEN)
    found["nll"], found["reference_nll"] = negative_log_likelihood(logits, targets), negative_log_likelihood(reference, targets)
    found["kl"] = found["kl_most"] = kl_divergence(reference, logits)
    found["top1"], found["top5"] = _agreement(reference.argmax(-1), logits)
    with np.errstate(invalid="ignore"):
        missed = np.nan if kept is None else found["kl"] - kept.score(logits, targets)["kl"]
    found["kl_missed"] = np.where(np.isfinite(found["kl"]), missed, np.nan if kept is None else 0.0)
    return found


def score_alone(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> Tokens:
    """Of a file without a reference: `TOKEN` [n], of which only nll is known."""
    found = np.zeros(len(logits), TOKEN)
    found["nll"] = negative_log_likelihood(logits, targets)
    return found


def _agreement(likeliest: NDArray[Any], logits: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Is the file's likeliest token the reference's; is the reference's among the file's first five. Ties go to the smaller id."""
    chosen = np.take_along_axis(logits, likeliest[:, None].astype(np.int64), -1)
    ahead = (logits > chosen) | ((logits == chosen) & (np.arange(logits.shape[-1]) < likeliest[:, None]))
    rank = ahead.sum(-1)
    finite = np.isfinite(chosen[:, 0])
    return finite & (rank == 0), finite & (rank < TOP)
