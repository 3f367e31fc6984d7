"""Texts through a file and its reference, window by window: the figures of each token that was foretold."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flatlm.generative.evaluation.distributions import Distributions, score_alone, score_whole
from flatlm.generative.evaluation.journal import Journal
from flatlm.generative.evaluation.reference_cache import ReferenceCache
from flatlm.generative.evaluation.scores import TOKEN, Tokens
from flatlm.generative.reference import Reference
from flatlm.generative.runner import Runner
from flatlm.progress import Progress
from flatlm.utilities.documents import Piece

CHUNK = 64
"""Tokens that are read at once where the file reads one by one."""
LOGITS_AT_ONCE = 1 << 25
"""The most logits (tokens times vocabulary) that are held of each side: 128 MB; more only where the shortest signature gives more."""
SCORED_AT_ONCE = 1 << 22
"""The most logits that are scored at once: about ten times as much memory is needed for it, 170 MB."""


class Subject(Protocol):
    """What is judged: it reads a text piece by piece."""

    def reset(self) -> None:
        """Forget the text so far."""
        ...

    def feed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Read on: the logits [n, V] after each of the n ids."""
        ...


class RunningFile:
    """An open file as what reads a text piece by piece, through its prefill signatures where they return logits."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._prefills = prefills_logits(runner)

    def reset(self) -> None:
        self._runner.reset()

    def feed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        if self._prefills:
            return self._runner.prefill_logits(ids)
        return np.stack([self._runner.step(token) for token in ids])


class KeptReference:
    """A reference whose distributions are kept on disk as they are computed, and taken from there where they are known."""

    def __init__(self, reference: Reference, cache: ReferenceCache | None) -> None:
        self._reference, self._cache = reference, cache
        self._running = False

    def begin(self, first: int, piece: Piece) -> None:
        """A window comes, whose first scored token is the `first` of all."""
        self._first, self._done = first, 0
        self._known = None if self._cache is None else self._cache.read(first, piece.scored)
        if self._known is None:
            self._reference.reset()

    def score(self, inputs: Sequence[int], logits: NDArray[np.float32], targets: NDArray[np.int64]) -> Tokens:
        """The file's logits [n, V] for the targets [n], which follow the last n of the inputs. All inputs come, in the window's order."""
        n = len(targets)
        if self._known is not None:
            known = self._known.records[self._done : self._done + n]
            self._done += n
            return _joined([Distributions(known[rows]).score(logits[rows], targets[rows]) for rows in _slices(logits)])
        expected = self._reference.feed(inputs)[len(inputs) - n :]
        return _joined([self._score(expected[rows], logits[rows], targets[rows]) for rows in _slices(logits)])

    def _score(self, expected: NDArray[np.float32], logits: NDArray[np.float32], targets: NDArray[np.int64]) -> Tokens:
        """Against what the reference itself says, which is kept."""
        if self._cache is None:
            return score_whole(expected, None, logits, targets)
        kept = Distributions.of(expected, targets, self._cache.top)
        self._cache.append(self._first + self._done, kept)
        self._done += len(targets)
        return score_whole(expected, kept, logits, targets)


def score_windows(
    subject: Subject,
    pieces: Sequence[Piece],
    *,
    reference: KeptReference | None = None,
    chunk: int = CHUNK,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> list[Tokens]:
    """The figures of each window's scored tokens, `chunk` tokens at a time; what the journal has already is not run again."""
    total = sum(piece.scored for piece in pieces)
    found = [] if journal is None else journal.read([piece.scored for piece in pieces])
    done = sum(map(len, found))
    for piece in pieces[len(found) :]:
        subject.reset()
        if reference is not None:
            reference.begin(done, piece)
        parts = []
        for inputs, targets in _chunks(piece, chunk):
            logits = subject.feed(inputs)[len(inputs) - len(targets) :]
            if reference is None:
                parts += [score_alone(logits[rows], targets[rows]) for rows in _slices(logits)]
            else:
                parts.append(reference.score(inputs, logits, targets))
            done += len(targets)
            if progress is not None:
                progress("evaluate", done, total)
        found.append(_joined(parts))
        if journal is not None:
            journal.append(found[-1])
    return found


def prefills_logits(runner: Runner) -> bool:
    """Does any of the file's prefill signatures return logits?"""
    return any("logits" in spec.outputs for spec in runner.file.prefill)


def chunk_length(runner: Runner) -> int:
    """As many tokens as a prefill signature with logits takes: the longest within what memory allows, or else the shortest."""
    lengths = [spec.length for spec in runner.file.prefill if "logits" in spec.outputs]
    most = max(1, LOGITS_AT_ONCE // runner.vocab_size)
    return max((length for length in lengths if length <= most), default=min(lengths, default=min(CHUNK, most)))


def _slices(logits: NDArray[np.float32]) -> Iterator[slice]:
    """Rows that are scored at once."""
    step = max(1, SCORED_AT_ONCE // logits.shape[-1])
    return (slice(start, start + step) for start in range(0, len(logits), step))


def _joined(parts: Sequence[Tokens]) -> Tokens:
    return np.concatenate(parts) if parts else np.zeros(0, TOKEN)


def _chunks(piece: Piece, length: int) -> Iterator[tuple[tuple[int, ...], NDArray[np.int64]]]:
    """The piece's inputs, `length` at a time, and the tokens that follow the last of them, where those are scored."""
    inputs, unscored = piece.ids[:-1], len(piece.ids) - 1 - piece.scored
    for start in range(0, len(inputs), length):
        stop = min(start + length, len(inputs))
        yield inputs[start:stop], np.array(piece.ids[max(start, unscored) + 1 : stop + 1], np.int64)
