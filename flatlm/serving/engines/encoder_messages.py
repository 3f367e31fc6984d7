"""What is said between the server and an encoder's process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Text: TypeAlias = str | Sequence[int]
"""A text; or its token ids, which are read as they are: nothing is put around them."""


@dataclass(frozen=True)
class EncoderFacts:
    """What a served encoder does. `head`: what it was exported for. `longest`: the most tokens of a text, or of a pair, special ones
    included. `dimensions`: of its vectors, 0 for a classifier. `labels`: a classifier's, whose last says that two texts match.
    `vocab_size`: 0 where the file does not say.
    """

    head: str
    longest: int
    dimensions: int
    labels: tuple[str, ...]
    vocab_size: int

    @property
    def embeds(self) -> bool:
        return self.dimensions > 0


@dataclass(frozen=True)
class Embedded:
    """A text's vector, [D] float32, and how many tokens were read for it."""

    vector: NDArray[np.float32]
    tokens: int


@dataclass(frozen=True)
class Scored:
    """How well a document answers a query: a classifier's probability, 0 to 1, or the cosine of two vectors, -1 to 1."""

    relevance: float
    tokens: int


@dataclass(frozen=True)
class EmbedRequest:
    """Vectors are asked for: an `Embedded` for each text. `truncate`: texts that are too long are cut."""

    texts: tuple[Text, ...]
    truncate: bool = False


@dataclass(frozen=True)
class ScoreRequest:
    """Scores are asked for: a `Scored` for each document."""

    query: str
    documents: tuple[str, ...]
    truncate: bool = False
