"""A conversation's text as tokens, so that a longer one begins with the tokens of the shorter one.

A text may be cut into tokens in many ways, and the model need not have written its answers in the way that the tokenizer cuts them. So
answers stay the tokens that they were made as, and of a longer conversation only what comes after them is cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flatlm.utilities.tokenizing.tokenizer import Tokenizer

_CONTEXT = 64
"""Characters before a text that are enough to see how it is cut after them."""


@dataclass(frozen=True)
class Rendered:
    """A conversation through its template, up to where the answer begins. `cuts`: (characters, tokens) of its beginnings, in order."""

    text: str
    ids: tuple[int, ...]
    cuts: tuple[tuple[int, int], ...]


class Transcript:
    """What is known of a conversation's tokens. `read` and `wrote` take turns; a shorter or another conversation may come at any time."""

    def __init__(self, tokenizer: Tokenizer, template: str | None = None) -> None:
        """`template`: Jinja text in the place of the tokenizer's own."""
        self._tokenizer, self._template = tokenizer, template
        self._last = Rendered("", (), ())
        self._answer: tuple[str, tuple[int, ...]] | None = None

    def read(self, messages: Sequence[Mapping[str, Any]]) -> Rendered:
        """The conversation's tokens, ready for an answer. Changes nothing: `wrote` says which conversation was gone on with.

        Where the template writes earlier turns otherwise than before (a model's reasoning may be left out), they are cut anew from there
        on. Raises TokenizerError.
        """
        text = self._tokenizer.render_chat(messages, template=self._template)
        known = self._known(text)
        more = self._cut(text[: len(known.text)], text[len(known.text) :]) if known.ids else None
        ids = tuple(self._tokenizer.encode_chat(text, self._template)) if more is None else (*known.ids, *more)
        return Rendered(text, ids, (*(() if more is None else known.cuts), (len(text), len(ids))))

    def wrote(self, prompt: Rendered, text: str, ids: Sequence[int] | None) -> None:
        """The conversation was gone on with, and answered.

        `ids`: None where they stand for more than the text, such as a stop string that is no part of it.
        """
        self._last = prompt
        self._answer = None if ids is None else (text, tuple(ids))

    def _known(self, text: str) -> Rendered:
        """The longest beginning of `text` whose tokens are known."""
        last = self._last
        if self._answer is not None and text.startswith(last.text):
            wrote, ids = self._answer
            if (end := _end_of_answer(text, len(last.text), wrote)) is not None:
                return Rendered(text[:end], (*last.ids, *ids), (*last.cuts, (end, len(last.ids) + len(ids))))
        for count, (characters, tokens) in reversed(list(enumerate(last.cuts, 1))):
            if text.startswith(last.text[:characters]):
                return Rendered(last.text[:characters], last.ids[:tokens], last.cuts[:count])
        return Rendered("", (), ())

    def _cut(self, before: str, text: str) -> list[int] | None:
        """The tokens of `text` behind `before`; None where one token would reach across. A special token begins anew behind anything."""
        if not text:
            return []
        for context in (before[-_CONTEXT:], "\n", "a"):
            first, both = (self._tokenizer.encode(part, add_special_tokens=False) for part in (context, context + text))
            if both[: len(first)] == first:
                return both[len(first) :]
        return None


def _end_of_answer(text: str, start: int, answer: str) -> int | None:
    """Where the answer ends in a text that has it at `start`; templates may take the white space around it away, or put some there."""
    if text.startswith(answer, start):
        return start + len(answer)
    begin = len(text) - len(text[start:].lstrip())
    words = answer.strip()
    return begin + len(words) if words and text.startswith(words, begin) else None
