"""A linear-chain conditional random field (Lafferty et al. 2001): the likeliest path of labels, in numpy.

A path y of T labels scores start[y_0] + sum_t emissions[t, y_t] + sum_t transitions[y_{t-1}, y_t] + end[y_{T-1}], as pytorch-crf defines
it; FlagAI's layer is the same with transitions alone, over texts whose first token, [CLS], has label 0.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatlm.errors import RuntimeFileError

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Crf:
    """transitions [L, L]: of label i (row) followed by label j (column); start [L], end [L]: of the first and of the last label."""

    transitions: Array
    start: Array
    end: Array

    @classmethod
    def from_facts(cls, facts: Any) -> "Crf":
        """From a manifest's `crf`. Raises RuntimeFileError where it is damaged."""
        from flatlm.utilities.configs.crf_facts import decode_crf

        try:
            return cls(*decode_crf(facts))
        except (KeyError, TypeError, ValueError) as error:
            raise RuntimeFileError(f"the manifest's crf is damaged ({error}): export the file again") from error

    @property
    def labels(self) -> int:
        """L."""
        return len(self.start)

    def score(self, emissions: Array, path: NDArray[np.int64]) -> float:
        """A path's score, in float64."""
        steps = emissions[np.arange(len(path)), path].astype(np.float64).sum()
        return float(self.start[path[0]] + steps + self.transitions[path[:-1], path[1:]].astype(np.float64).sum() + self.end[path[-1]])

    def decode(self, emissions: Array) -> NDArray[np.int64]:
        """The path [T] of the highest score for emissions [T, L] (Viterbi 1967); of equals, the one with the lowest labels from behind."""
        if emissions.ndim != 2 or emissions.shape[1] != self.labels:
            raise RuntimeFileError(f"emissions of shape {list(emissions.shape)}: the CRF is over {self.labels} labels")
        count = len(emissions)
        if not count:
            return np.empty(0, np.int64)
        transitions = self.transitions.astype(np.float64)
        best = self.start + emissions[0].astype(np.float64)
        came_from = np.empty((count, self.labels), np.int64)
        for step in range(1, count):
            candidates = best[:, None] + transitions
            came_from[step] = candidates.argmax(0)
            best = candidates.max(0) + emissions[step]
        path = np.empty(count, np.int64)
        path[-1] = int((best + self.end).argmax())
        for step in range(count - 1, 0, -1):
            path[step - 1] = came_from[step, path[step]]
        return path
