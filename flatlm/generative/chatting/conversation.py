"""A conversation with a model, turn after turn; what it has read and written stays in its cache."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from flatlm.errors import RuntimeFileError
from flatlm.generative.chatting.transcript import Rendered, Transcript
from flatlm.generative.generate import FinishReason, Piece
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.session import Session, TurnStats
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

WhenFull: TypeAlias = Literal["slide", "stop"]
"""What happens when the context is full: the oldest turns are left out, or nothing is answered any more."""
WHEN_FULL: tuple[WhenFull, ...] = ("slide", "stop")

Message: TypeAlias = dict[str, str]

_FREED = 4
"""Sliding frees at least one part in so many of the context, so that not every turn slides again."""


@dataclass(frozen=True)
class Turn:
    """A question, and what was answered. `finish_reason`: None where it was stopped. `stats`: None where it comes from a file.

    `forgotten`: how many of the oldest turns the model did not see when it answered. `context_used`: tokens that were in its cache then.
    """

    question: str
    answer: str
    finish_reason: FinishReason | None = None
    token_ids: tuple[int, ...] = ()
    stats: TurnStats | None = None
    forgotten: int = 0
    context_used: int = 0


@dataclass(frozen=True)
class Asked:
    """A question that is ready to be answered. `forgotten`: how many of the oldest turns the model will not see."""

    question: str
    prompt: Rendered
    forgotten: int
    _turns: int
    """Turns before it, of which later ones are replaced."""


class Conversation:
    """`asked = ask(question)`, then `for piece in answer(asked)`; the turn is kept when the answer ends, or its reader stops.

    turns: all of them. system: what it is told before all, or None. config:
    how answers are written. Not for several threads at once.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        *,
        template: str | None = None,
        system: str | None = None,
        config: GenerationConfig | None = None,
        when_full: WhenFull = "slide",
    ) -> None:
        """`template`: Jinja text in the place of the tokenizer's own."""
        self.session, self.system, self.when_full = session, system, when_full
        self.config = config or GenerationConfig()
        self.turns: list[Turn] = []
        self._transcript = Transcript(tokenizer, template)

    @property
    def context_length(self) -> int:
        """Tokens of the context, questions and answers together."""
        return self.session.runner.cache_length

    @property
    def context_used(self) -> int:
        """Tokens of it that the last turn left in use; 0 where that comes from a file, and was not read."""
        return self.turns[-1].context_used if self.turns else 0

    @property
    def forgotten(self) -> int:
        """How many of the oldest turns the model did not see at the last one. So they are seen again when that is taken back."""
        return self.turns[-1].forgotten if self.turns else 0

    @property
    def messages(self) -> list[Message]:
        """The whole conversation, with what the model no longer sees."""
        return _messages(self.system, self.turns)

    def ask(self, question: str) -> Asked:
        """Makes room where that is needed. Changes nothing until it is answered.

        Raises TokenizerError where the template refuses the messages, and RuntimeFileError where the context is full or too short.
        """
        return self._ask(question, len(self.turns))

    def ask_again(self) -> Asked:
        """The last question, for another answer in the place of the last. RuntimeFileError where nothing was asked."""
        if not self.turns:
            raise RuntimeFileError("nothing was asked yet")
        return self._ask(self.turns[-1].question, len(self.turns) - 1)

    def answer(self, asked: Asked) -> Generator[Piece, None, None]:
        """In pieces, as it comes. Who stops reading, and closes this, keeps what was written so far; without a token there is no turn."""
        text: list[str] = []
        ids: list[int] = []
        reason: FinishReason | None = None
        pieces = self.session.stream(asked.prompt.ids, self.config)
        try:
            for piece in pieces:
                text.append(piece.text)
                ids += [] if piece.token_id is None else [piece.token_id]
                reason = piece.finish_reason
                yield piece
        finally:
            pieces.close()
            if ids or reason is not None:
                used = len(self.session.held)
                turn = Turn(asked.question, "".join(text), reason, tuple(ids), self.session.last, asked.forgotten, used)
                self.turns[asked._turns :] = [turn]
                self._transcript.wrote(asked.prompt, turn.answer, None if reason == "stop" else ids)

    def undo(self) -> Turn:
        """Take the last turn back. RuntimeFileError where there is none."""
        if not self.turns:
            raise RuntimeFileError("nothing was asked yet")
        return self.turns.pop()

    def reset(self, turns: Sequence[Turn] = ()) -> None:
        """Begin anew, or with the turns of another conversation."""
        self.turns = list(turns)

    def _ask(self, question: str, turns: int) -> Asked:
        """With so many of the turns before it."""
        forgotten, length = self.turns[turns - 1].forgotten if turns else 0, self.context_length
        least = length // _FREED
        wanted = max(1, least if self.config.max_new_tokens is None else min(self.config.max_new_tokens, least))
        prompt = self._read(question, forgotten, turns)
        if self.when_full == "stop":
            if len(prompt.ids) >= length and turns > forgotten:
                raise RuntimeFileError(
                    f"the context is full: {len(prompt.ids):,} tokens with this question, of {length:,}; nothing more is answered: begin "
                    "anew, take turns back, or let it slide"
                )
        elif length - len(prompt.ids) < wanted:
            while length - len(prompt.ids) < least and forgotten < turns:
                forgotten += 1
                prompt = self._read(question, forgotten, turns)
        if len(prompt.ids) >= length:
            raise RuntimeFileError(f"the question is too long: {len(prompt.ids):,} tokens, and the context has {length:,}; shorten it")
        return Asked(question, prompt, forgotten, turns)

    def _read(self, question: str, forgotten: int, turns: int) -> Rendered:
        asked = {"role": "user", "content": question}
        return self._transcript.read([*_messages(self.system, self.turns[forgotten:turns]), asked])


def _messages(system: str | None, turns: Sequence[Turn]) -> list[Message]:
    found = [] if system is None else [{"role": "system", "content": system}]
    for turn in turns:
        found += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
    return found
