"""One text across turns: each prompt is read from where it parts from what the cache holds already."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Protocol

from flatlm.errors import RuntimeFileError
from flatlm.generative.beginnings import common_tokens
from flatlm.generative.generate import Piece, TextTokenizer, stream
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.runner import Writer
from flatlm.generative.speculation import SpeculationCounts


class SessionRunner(Writer, Protocol):
    """A writer that can go back in its text: a `Runner`, or one that speculates."""

    def can_rewind(self, position: int) -> bool: ...
    def rewind(self, position: int) -> None: ...
    def copy_from(self, other: Any) -> None: ...


@dataclass(frozen=True)
class TurnStats:
    """What a turn took, so far or in all. Seconds are those spent in the turn, not those of whoever takes its pieces."""

    prompt_tokens: int
    shared_tokens: int
    """Those of the prompt that were in the cache."""
    new_tokens: int = 0
    prefill_s: float = 0.0
    """To read the prompt, but for its last token."""
    time_to_first_token_s: float | None = None
    """That and the first step; None where no token was made."""
    decode_s: float = 0.0
    """From the first token on."""
    proposed: int = 0
    """Tokens that a draft proposed."""
    accepted: int = 0
    """Those of them that were picked."""


class Session:
    """A runner's text, turn after turn. Not for several threads at once."""

    def __init__(self, runner: SessionRunner, tokenizer: TextTokenizer) -> None:
        """The runner begins a new text."""
        self.runner, self.tokenizer = runner, tokenizer
        self._clock: _Clock | None = None
        self._counted = self._counts()  # when the last turn began
        self._turn = 0
        self._text: list[int] = []  # the last prompt and its answer
        self.reset()

    @property
    def last(self) -> TurnStats | None:
        """Of the turn that was begun last."""
        if self._clock is None:
            return None
        was, now = self._counted, self._counts()
        return replace(self._clock.stats(), proposed=now.proposed - was.proposed, accepted=now.accepted - was.accepted)

    @property
    def held(self) -> tuple[int, ...]:
        """The tokens in the cache."""
        return tuple(self._text[: self.runner.position])  # the last token that was made need not have been read

    def shared(self, ids: Sequence[int]) -> int:
        """How many of a prompt's tokens need not be read, all but the last at most: they are in the cache, and it can go back to them."""
        found = common_tokens(self._text[: self.runner.position], [*ids[:-1]])
        return found if self.runner.can_rewind(found) else 0

    def stream(self, ids: Sequence[int], config: GenerationConfig) -> Generator[Piece, None, None]:
        """The answer to a prompt, which is the whole text up to it. It is read when the first piece is asked for.

        Whoever takes the pieces may stop at any of them. RuntimeFileError for going on with a stream after another turn was begun.
        """
        self._turn += 1
        turn, prompt = self._turn, [int(token) for token in ids]
        shared = self.shared(prompt)
        if shared:
            self.runner.rewind(shared)
        else:
            self.runner.reset()
        self._text = prompt.copy()
        pieces, clock = stream(self.runner, self.tokenizer, prompt, config, held=shared), _Clock(len(prompt), shared)
        self._clock, self._counted = clock, self._counts()
        try:
            while (piece := clock.next(pieces)) is not None:
                if piece.token_id is not None:
                    self._text.append(piece.token_id)
                yield piece
                if turn != self._turn:
                    raise RuntimeFileError("this stream has ended: its text was closed, or another answer was asked for meanwhile")
        finally:
            pieces.close()

    def adopt(self, other: "Session") -> None:
        """Take over the text that another session holds, whose runner is a sibling of this one's."""
        self._turn += 1
        self.runner.copy_from(other.runner)
        self._text = list(other.held)

    def reset(self) -> None:
        """Forget the text; a stream that was begun cannot go on."""
        self._turn += 1
        self._text = []
        self.runner.reset()

    def _counts(self) -> SpeculationCounts:
        """Of all the runner's texts: nothing, where it has no draft."""
        found: SpeculationCounts = getattr(self.runner, "counts", SpeculationCounts())
        return found


class _Clock:
    """Counts what a turn's pieces are, and the time until each was there."""

    def __init__(self, prompt_tokens: int, shared_tokens: int) -> None:
        self._prompt, self._shared = prompt_tokens, shared_tokens
        self._new, self._spent, self._read = 0, 0.0, 0.0
        self._first: float | None = None

    def next(self, pieces: Iterator[Piece]) -> Piece | None:
        began = perf_counter()
        piece = next(pieces, None)
        self._spent += perf_counter() - began
        if piece is not None and piece.token_id is not None:
            self._new += 1
            self._first = self._spent if self._first is None else self._first
        elif piece is not None and piece.finish_reason is None:
            self._read = self._spent
        return piece

    def stats(self) -> TurnStats:
        decode = 0.0 if self._first is None else self._spent - self._first
        return TurnStats(self._prompt, self._shared, self._new, self._read, self._first, decode)
