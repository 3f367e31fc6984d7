"""Probabilities of tokens as OpenAI's two endpoints give them."""

from collections.abc import Iterable, Sequence
from typing import Any

from flatlm.generative.generate import Piece, StreamDecoder
from flatlm.generative.logprobs import TokenLogprob

LEAST = -9999.0
"""JSON has no infinity: what cannot be is as good as impossible. OpenAI's own figure."""


def chat_logprobs(pieces: Iterable[Piece]) -> dict[str, Any]:
    """Of /v1/chat/completions."""
    content = []
    for found in (piece.logprob for piece in pieces):
        if found is not None:
            content.append({**_token(found), "top_logprobs": [_token(each) for each in found.top]})
    return {"content": content, "refusal": None}


def _token(found: TokenLogprob) -> dict[str, Any]:
    return {"token": found.text, "logprob": max(found.logprob, LEAST), "bytes": list(found.bytes)}


class CompletionLogprobs:
    """Of /v1/completions, of one text: lists side by side, with each token's place in the text."""

    def __init__(self, *, top: int) -> None:
        self._top = top
        self._offset = 0  # of the prompt's next token; then of the answer
        self._tokens: list[tuple[str, TokenLogprob | None, int]] = []

    def add_prompt(self, ids: Sequence[int], found: Sequence[TokenLogprob], first: str, decoder: StreamDecoder) -> None:
        """A prompt's tokens. `first`: the text of its first one, which nothing foretells; `found`: of the others."""
        for place, token in enumerate(ids):
            told = found[place - 1] if place else None
            self._tokens.append((first if told is None else told.text, told, self._offset))
            self._offset += len(decoder.push(token))
        self._offset += len(decoder.finish())

    def add(self, pieces: Iterable[Piece]) -> None:
        """An answer's."""
        for piece in pieces:
            if piece.logprob is not None:
                self._tokens.append((piece.logprob.text, piece.logprob, self._offset + piece.begins))

    def take(self) -> dict[str, Any]:
        """Of the tokens since the last time."""
        tokens, self._tokens = self._tokens, []
        return {
            "tokens": [text for text, _, _ in tokens],
            "token_logprobs": [None if found is None else max(found.logprob, LEAST) for _, found, _ in tokens],
            "top_logprobs": [_tops(found) for _, found, _ in tokens] if self._top else None,
            "text_offset": [offset for _, _, offset in tokens],
        }


def _tops(found: TokenLogprob | None) -> dict[str, float] | None:
    """The most probable tokens, and the one that is there."""
    if found is None:
        return None
    return {each.text: max(each.logprob, LEAST) for each in (*found.top, found)}
