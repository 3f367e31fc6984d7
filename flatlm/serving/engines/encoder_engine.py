"""What the process of an encoder does: texts to vectors, pairs of texts to scores, one text a step."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flatlm.errors import RuntimeFileError
from flatlm.generative.inspect import read_manifest
from flatlm.serving.engines.encoder_messages import Embedded, EmbedRequest, EncoderFacts, Scored, ScoreRequest, Text
from flatlm.tasks.classifying import MatchingTask
from flatlm.tasks.embedding import EmbeddingTask, cosine
from flatlm.tasks.reading import ReadingTask, shortened
from flatlm.tasks.runner import open_task
from flatlm.tasks.table import ENCODER
from flatlm.utilities.tokenizing.encoded_text import EncodedText

SERVED = {"embedding": "embedding", "features": "embedding", "classification": "semantic-matching"}
"""The task that an encoder's head is served for."""


class Reading:
    """A job that has begun: a text is read at each step. It ends with StopIteration, and late as soon as its time is over."""

    stats: Any = None

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items

    def step(self) -> Any:
        return next(self._items)

    def late(self) -> None:
        return None

    def close(self) -> None:
        """Nothing is held."""


class EncoderEngine:
    """One encoder and its tokenizer. `embed` and `score` are read a text at a time, so that who takes turns can stop in between.

    All texts of a call are cut into tokens before the first is read, so that one which does not fit is told at once.
    """

    def __init__(self, task: ReadingTask) -> None:
        """Use `open`."""
        self._task = task
        head = str(task.manifest.get("task", "features"))
        dimensions = task.dimensions if isinstance(task, EmbeddingTask) else 0
        self.encoder = EncoderFacts(head, task.longest, dimensions, task.labels, task.vocab_size)
        self.facts: Mapping[str, Any] = asdict(self.encoder)

    @classmethod
    def open(cls, file: Path, tokenizer: Path | None = None, *, threads: int | None = None) -> "EncoderEngine":
        """RuntimeFileError for a file that neither gives vectors nor tells whether two texts match; TokenizerError without a tokenizer."""
        task = open_task(file, task=served_task(file), tokenizer=tokenizer, threads=threads)
        assert isinstance(task, ReadingTask)
        return cls(task)

    @property
    def full(self) -> bool:
        """There is always room: a text that was read leaves nothing behind."""
        return False

    def begin(self, request: EmbedRequest | ScoreRequest) -> "Reading":
        """It is read when its turn comes."""
        if isinstance(request, EmbedRequest):
            return Reading(self.embed(request.texts, truncate=request.truncate))
        return Reading(self.score(request.query, request.documents, truncate=request.truncate))

    def embed(self, texts: Sequence[Text], *, truncate: bool = False) -> Iterator[Embedded]:
        """Each text's vector, in order. RuntimeFileError for one without tokens, with tokens that there are not, or, unless it is to be
        cut (`truncate`), with more than the model reads; the message has its place.
        """
        for encoded in [self._encode(text, None, truncate, f"input {place}") for place, text in enumerate(texts)]:
            yield self._embed(encoded)

    def score(self, query: str, documents: Sequence[str], *, truncate: bool = False) -> Iterator[Scored]:
        """How well each document answers the query, in order: by the classifier of pairs, or by the cosine of the two vectors."""
        if isinstance(self._task, MatchingTask):
            for pair in [self._encode(query, text, truncate, f"the query with document {place}") for place, text in enumerate(documents)]:
                yield Scored(self._task.match_tokens(pair, self._positive).probability, len(pair.ids))
            return
        asked = self._encode(query, None, truncate, "the query")
        encoded = [self._encode(text, None, truncate, f"document {place}") for place, text in enumerate(documents)]
        vector = self._embed(asked)
        for place, each in enumerate(encoded):
            found = self._embed(each)
            yield Scored(cosine(vector.vector, found.vector), found.tokens + (vector.tokens if place == 0 else 0))

    def close(self) -> None:
        """Frees the model."""
        self._task.close()

    @property
    def _positive(self) -> str | None:
        """The label that says that texts match; None for the one of a regression, which needs no name."""
        return self._task.labels[-1] if self._task.labels else None

    def _embed(self, encoded: EncodedText) -> Embedded:
        assert isinstance(self._task, EmbeddingTask)
        return Embedded(self._task.vector_of(encoded), len(encoded.ids))

    def _encode(self, text: Text, pair: str | None, truncate: bool, what: str) -> EncodedText:
        encoded = self._task.tokenizer.encode_text(text, pair) if isinstance(text, str) else _as_they_are(text)
        if not encoded.ids:
            raise RuntimeFileError(f"{what} has no tokens; a text has at least one")
        known = self._task.vocab_size or 2**31
        if (unknown := next((token for token in encoded.ids if not 0 <= token < known), None)) is not None:
            raise RuntimeFileError(f"{what}: token {unknown} is outside the model's vocabulary of {known}")
        if len(encoded.ids) > self.encoder.longest and not truncate:
            raise RuntimeFileError(
                f"{what} has {len(encoded.ids)} tokens, and the model reads at most {self.encoder.longest}: shorten it, or let it be cut "
                "(truncate: true)"
            )
        return shortened(encoded, self.encoder.longest)


def served_task(file: Path) -> str:
    """The task that a file is served for. RuntimeFileError for one that is no encoder, or whose answers no endpoint gives."""
    manifest = read_manifest(file)
    head, labels = str(manifest.get("task", "features")), manifest.get("labels")
    if manifest.get("kind") != ENCODER or head not in SERVED:
        what = f"an encoder exported for {head}" if manifest.get("kind") == ENCODER else "no encoder"
        raise RuntimeFileError(f"{file} is {what}: embeddings and scores are given by encoders exported for {', '.join(SERVED)}")
    if SERVED[head] == "semantic-matching" and isinstance(labels, list) and len(labels) > 2:
        raise RuntimeFileError(
            f"{file} is a classifier of {len(labels)} labels: texts are ranked by one label, or by the last of two, which says that they "
            "match"
        )
    return SERVED[head]


def _as_they_are(ids: Sequence[int]) -> EncodedText:
    count = len(ids)
    return EncodedText(tuple(ids), (0,) * count, ((0, 0),) * count, (0,) * count)
