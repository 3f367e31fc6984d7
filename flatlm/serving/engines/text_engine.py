"""The texts of one exported file: slots with a cache each, over weights that are loaded once."""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from flatlm.generative.beginnings import common_tokens
from flatlm.generative.file_tokenizer import file_tokenizer
from flatlm.generative.generate import Piece
from flatlm.generative.logprobs import TokenLogprob, token_logprob
from flatlm.generative.runner import Runner
from flatlm.generative.session import Session, TurnStats
from flatlm.generative.speculation import SpeculativeRunner, open_runner
from flatlm.serving.engines.messages import EngineSpec, ScoreRequest, WriteRequest

WORTH_WAITING = 16
"""Tokens. A prompt that another slot is reading the beginning of waits for it, and copies that, where it saves as many."""


class TextEngine:
    """Slots, made when they are first needed. A request gets the one whose text its prompt shares the most with, or a copy of that text."""

    def __init__(self, runner: Runner | SpeculativeRunner, make_session: Callable[[], Session], *, slots: int, share: bool = True) -> None:
        """`make_session`: another text over the same weights. `share`: read what prompts have in common once."""
        self.facts: Mapping[str, Any] = {"context": runner.cache_length, "vocab_size": runner.vocab_size}
        self._make_session = make_session
        self._most = slots
        self._share = share
        self._slots: list[Slot] = []
        self._clock = count(1)

    @classmethod
    def open(cls, spec: EngineSpec) -> "TextEngine":
        """Raises RuntimeFileError, TokenizerError where the file cannot be served."""
        tokenizer = file_tokenizer(spec.file, spec.tokenizer)
        first = open_runner(spec.file, spec.draft, threads=spec.threads)
        first.require_left_to_right()
        unused = [first]

        def make_session() -> Session:
            return Session(unused.pop() if unused else first.sibling(), tokenizer)

        return cls(first, make_session, slots=spec.slots, share=spec.share_beginnings)

    def begin(self, request: WriteRequest | ScoreRequest) -> "Writing | Scoring | None":
        """Takes a slot; None while all are taken, or while another one reads what this prompt begins with too."""
        if self.full:
            return None
        free = [slot for slot in self._slots if slot.task is None]
        if isinstance(request, ScoreRequest):
            slot = min(free, key=lambda slot: slot.used) if self._all_made else self._another()
            return slot.score(request, next(self._clock))
        if not self._share:
            slot = free[0] if free else self._another()
            slot.session.reset()
            return slot.write(request, next(self._clock))
        best = max(self._slots, key=lambda slot: slot.session.shared(request.ids), default=None)
        shared = best.session.shared(request.ids) if best else 0
        if any(slot.will_share(request.ids) >= shared + WORTH_WAITING for slot in self._slots):
            return None
        slot = self._place(best if shared else None, shared, free)
        if best is not None and shared > slot.session.shared(request.ids):
            slot.session.adopt(best.session)
        return slot.write(request, next(self._clock))

    def _place(self, best: "Slot | None", shared: int, free: list["Slot"]) -> "Slot":
        """Where the prompt is read: on the text that it shares the most with, unless most of that text would be lost to another one."""
        others = [slot for slot in free if slot is not best]
        if best is not None and best.task is None and (2 * shared >= len(best.session.held) or (not others and self._all_made)):
            return best
        return min(others, key=lambda slot: slot.used) if self._all_made else self._another()

    @property
    def full(self) -> bool:
        """Whether all slots are taken."""
        return self._all_made and all(slot.task is not None for slot in self._slots)

    @property
    def _all_made(self) -> bool:
        return len(self._slots) == self._most

    def _another(self) -> "Slot":
        self._slots.append(Slot(self._make_session()))
        return self._slots[-1]


class Slot:
    """One text, and what is done with it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.task: Writing | Scoring | None = None
        self.used = 0
        """When it was last begun: counted."""

    def write(self, request: WriteRequest, turn: int) -> "Writing":
        self.task = task = Writing(self, request)
        self.used = turn
        return task

    def score(self, request: ScoreRequest, turn: int) -> "Scoring":
        self.task = task = Scoring(self, request)
        self.used = turn
        return task

    def leave(self, task: "Writing | Scoring") -> None:
        """The slot is free again, if it was this one's."""
        if self.task is task:
            self.task = None

    def will_share(self, ids: Sequence[int]) -> int:
        """How much of a prompt this slot will have read when the prompt that it reads now is read; 0 where it reads none."""
        if not isinstance(self.task, Writing) or self.task.began:
            return 0
        return common_tokens(self.task.ids, ids[:-1])


class Writing:
    """An answer that a slot writes."""

    def __init__(self, slot: Slot, request: WriteRequest) -> None:
        self.ids, self.began = request.ids, False
        self._slot = slot
        self._pieces = slot.session.stream(request.ids, request.config)
        self._stepped = False

    @property
    def stats(self) -> TurnStats | None:
        return self._slot.session.last if self._stepped else None

    def step(self) -> Piece | None:
        self._stepped = True
        piece = next(self._pieces)
        if piece.token_id is None and piece.finish_reason is None:
            return None  # a part of the prompt was read
        self.began = True
        return piece

    def late(self) -> Piece:
        return Piece("", None, "length")

    def close(self) -> None:
        self._pieces.close()
        self._slot.leave(self)


class Scoring:
    """A text whose tokens' probabilities are read off, some tokens a step: by prefill where it gives logits, else by decode."""

    stats = None

    def __init__(self, slot: Slot, request: ScoreRequest) -> None:
        self._slot, self._request = slot, request
        self._done = 0
        slot.session.reset()
        runner: Any = slot.session.runner
        self._runner: Runner = getattr(runner, "target", runner)
        lengths = [spec.length for spec in self._runner.file.prefill if "logits" in spec.outputs]
        self._length = max(lengths, default=self._runner.verify_length)
        self._read = self._runner.prefill_logits if lengths else self._runner.verify

    def step(self) -> tuple[TokenLogprob, ...]:
        ids = self._request.ids
        if self._done >= len(ids) - 1:
            raise StopIteration
        chunk = ids[self._done : min(self._done + self._length, len(ids) - 1)]
        rows = self._read(chunk)
        following = ids[self._done + 1 : self._done + 1 + len(chunk)]
        self._done += len(chunk)
        vocabulary = self._slot.session.tokenizer.vocabulary
        return tuple(token_logprob(row, token, self._request.top, vocabulary) for row, token in zip(rows, following, strict=True))

    def late(self) -> None:
        return None

    def close(self) -> None:
        self._slot.session.reset()
        self._slot.leave(self)
