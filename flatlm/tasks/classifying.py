"""classification: a text's label. semantic-matching: whether two texts match."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flatlm.errors import RuntimeFileError
from flatlm.tasks.reading import ReadingTask, sigmoid, softmax
from flatlm.utilities.tokenizing.encoded_text import EncodedText


@dataclass(frozen=True)
class Classification:
    """`label`: the likeliest. `probabilities` of all labels, which sum to 1 but where each is decided by itself.

    `score`: the number that a regression gives, which has one label and no probability.
    """

    label: str
    probabilities: Mapping[str, float]
    score: float | None = None


@dataclass(frozen=True)
class Match:
    """`probability`: that the texts match, which is that of the label `positive`."""

    probability: float
    positive: str
    classification: Classification


class ClassificationTask(ReadingTask):
    """A head over a whole text, or over a pair."""

    options: ClassVar[tuple[str, ...]] = ("pair", "truncate")

    def predict(self, text: str, *, pair: str | None = None, truncate: bool = False) -> Classification:  # type: ignore[override]
        """A text's label, or a pair's."""
        return self.classify(text, pair, truncate=truncate)

    def classify(self, text: str, pair: str | None, *, truncate: bool) -> Classification:
        """The same, whatever the task."""
        return self.classify_tokens(self.encode(text, pair, truncate=truncate))

    def classify_tokens(self, encoded: EncodedText) -> Classification:
        """The same, of tokens."""
        logits = self.read(encoded, "logits")
        if self._runner.file.regression:
            return Classification(self.labels[0], {}, float(logits[0]))
        each = sigmoid(logits) if self._runner.file.multi_label else softmax(logits)
        return Classification(self.labels[int(each.argmax())], dict(zip(self.labels, map(float, each), strict=True)))


class MatchingTask(ClassificationTask):
    """A classifier of pairs. Of two labels the second says that they match; of more, the caller says which; of one, its logit does."""

    options: ClassVar[tuple[str, ...]] = ("pair", "positive", "truncate")

    def predict(  # type: ignore[override]
        self, text: str, *, pair: str | None = None, positive: str | None = None, truncate: bool = False
    ) -> Match:
        """Whether two texts match. `positive`: the label that says so. RuntimeFileError without a second text, or for an unknown label."""
        if pair is None:
            raise RuntimeFileError("semantic-matching compares two texts: give the second (pair, --text-pair)")
        return self.match_tokens(self.encode(text, pair, truncate=truncate), positive)

    def match_tokens(self, encoded: EncodedText, positive: str | None = None) -> Match:
        """The same, of the tokens of a pair."""
        found = self.classify_tokens(encoded)
        if found.score is not None:  # one logit, trained by the loss of a probability, as rerankers have it
            return Match(_probability(found.score), self.labels[0], found)
        if positive is None and len(self.labels) == 2:
            positive = self.labels[1]
        if positive is None or positive not in found.probabilities:
            what = "is no label of the model" if positive is not None else "is not known: the model has more than two labels"
            raise RuntimeFileError(f"the label that says that texts match, {positive!r}, {what}; it is one of {', '.join(self.labels)}")
        return Match(found.probabilities[positive], positive, found)


def _probability(logit: float) -> float:
    return float(sigmoid(np.array([logit], np.float32))[0])
