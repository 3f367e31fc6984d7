"""embedding: where texts lie, so that near ones mean nearly the same."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flatlm.tasks.reading import Array, ReadingTask
from flatlm.utilities.tokenizing.encoded_text import EncodedText

EMBEDDING, HIDDEN_STATES = "embedding", "hidden_states"


@dataclass(frozen=True)
class Embedding:
    """`similarity`: the cosine of the vector with that of the second text, where one was given."""

    vector: tuple[float, ...]
    similarity: float | None = None


class EmbeddingTask(ReadingTask):
    """The pooling, and whether vectors have the length 1, are in the graph, as the checkpoint says them.

    A file that gives hidden states instead (`--task features`) says no pooling: their mean is taken.
    """

    options: ClassVar[tuple[str, ...]] = ("pair", "truncate")

    def predict(self, text: str, *, pair: str | None = None, truncate: bool = False) -> Embedding:  # type: ignore[override]
        """A text's vector, and how near a second one is to it."""
        vector = self.vector(text, truncate=truncate)
        other = None if pair is None else self.vector(pair, truncate=truncate)
        return Embedding(tuple(map(float, vector)), None if other is None else cosine(vector, other))

    def vector(self, text: str, *, truncate: bool = False) -> Array:
        """A text's vector, [D] float32."""
        return self.vector_of(self.encode(text, truncate=truncate))

    @property
    def dimensions(self) -> int:
        """Of a vector."""
        name = EMBEDDING if EMBEDDING in self.outputs else HIDDEN_STATES
        return self.width(name)

    def vector_of(self, encoded: EncodedText) -> Array:
        """The same, of its tokens."""
        if EMBEDDING in self.outputs:
            return self.read(encoded, EMBEDDING)
        mean: Array = self.read(encoded, HIDDEN_STATES).mean(0)
        return mean


def cosine(a: Array, b: Array) -> float:
    """Of the angle between two vectors; 0 where one has no length."""
    lengths = float(np.linalg.norm(a.astype(np.float64)) * np.linalg.norm(b.astype(np.float64)))
    return float(a.astype(np.float64) @ b.astype(np.float64)) / lengths if lengths else 0.0
