"""Text from a runner: token by token as it comes, or whole."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from flatlm.errors import RuntimeFileError
from flatlm.generative.runner import Writer
from flatlm.generative.sampling import Sampler

FinishReason: TypeAlias = Literal["eos", "length", "context"]
"""The model ended the text; `max_new_tokens` were made; the file's cache is full."""


class StreamDecoder(Protocol):
    """Text from tokens as they come: what is certain already, never half a character."""

    def push(self, token_id: int) -> str: ...
    def finish(self) -> str: ...


class TextTokenizer(Protocol):
    """What generation asks of a tokenizer."""

    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    def stream_decoder(self, context: Sequence[int] = ()) -> StreamDecoder: ...


@dataclass(frozen=True)
class Piece:
    """What one step added. The last one has a finish reason, and no token."""

    text: str
    token_id: int | None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Generation:
    """A whole answer. The token that ended it is not among `token_ids`."""

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: FinishReason


def stream(
    runner: Writer,
    tokenizer: TextTokenizer,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int | None = None,
    sampler: Sampler | None = None,
    held: int = 0,
) -> Iterator[Piece]:
    """Reads the prompt at the runner's position and yields the answer, greedy unless a sampler is given.

    `runner.reset()` first begins a new text. `held`: the runner has read so many of the prompt's tokens, not all, already. Afterwards the
    runner holds the prompt and the answer, except the last token that was made if the answer did not end by itself.
    """
    if not len(prompt_ids):
        raise RuntimeFileError("the prompt has no tokens; a text begins with at least one")
    runner.require_left_to_right()
    if max_new_tokens is not None and max_new_tokens < 0:
        raise RuntimeFileError(f"{max_new_tokens} new tokens were asked for; it is 0 or more")
    runner.require_room(len(prompt_ids) - held)
    sampler = sampler or Sampler()
    decoder = tokenizer.stream_decoder(prompt_ids)  # so that the text goes on from the prompt, with its leading space
    runner.prefill(prompt_ids[held:-1])
    token, made = int(prompt_ids[-1]), 0
    while True:
        if made == max_new_tokens:
            reason: FinishReason = "length"
            break
        if made and runner.position == runner.cache_length:
            reason = "context"
            break
        token = sampler.pick(runner.step(token))
        if token in tokenizer.eos_ids:
            reason = "eos"
            break
        made += 1
        yield Piece(decoder.push(token), token)
    yield Piece(decoder.finish(), None, reason)


def generate(
    runner: Writer,
    tokenizer: TextTokenizer,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int | None = None,
    sampler: Sampler | None = None,
) -> Generation:
    """The whole answer to the prompt, as a new text: the runner is reset first."""
    runner.reset()
    return joined(stream(runner, tokenizer, prompt_ids, max_new_tokens=max_new_tokens, sampler=sampler), prompt_ids)


def joined(stream: Iterable[Piece], prompt_ids: Sequence[int]) -> Generation:
    """A whole answer from its pieces."""
    pieces = list(stream)
    reason = pieces[-1].finish_reason
    assert reason is not None
    tokens = tuple(piece.token_id for piece in pieces if piece.token_id is not None)
    return Generation("".join(piece.text for piece in pieces), tokens, tuple(map(int, prompt_ids)), reason)
