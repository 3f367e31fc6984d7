"""Text from a runner: token by token as it comes, or whole."""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from flatlm.errors import RuntimeFileError
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.grammars import constrain
from flatlm.generative.logprobs import TokenLogprob, token_logprob
from flatlm.generative.runner import Writer
from flatlm.generative.sampling import Sampler, TokenPicker
from flatlm.generative.stops import StopFilter
from flatlm.utilities.tokenizing.vocabulary import ByteDecoder, Vocabulary

FinishReason: TypeAlias = Literal["eos", "stop", "length", "context"]
"""The model ended the text; a stop string came, or the grammar is complete; `max_new_tokens` were made; the file's cache is full."""


class StreamDecoder(Protocol):
    """Text from tokens as they come: what is certain already, never half a character."""

    def push(self, token_id: int) -> str: ...
    def finish(self) -> str: ...


class TextTokenizer(Protocol):
    """What generation asks of a tokenizer."""

    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    @property
    def vocabulary(self) -> Vocabulary: ...
    def stream_decoder(self, context: Sequence[int] = ()) -> StreamDecoder: ...


@dataclass(frozen=True)
class Piece:
    """What one step added: nothing, while the prompt is read. The last one has a finish reason, and no token.

    Text that may still become a stop string is held back, so a token's text may come with a later one.
    """

    text: str
    token_id: int | None
    finish_reason: FinishReason | None = None
    logprob: TokenLogprob | None = None
    stop: str | None = None
    """The stop string that ended the text."""
    begins: int = 0
    """Of a token: the place of its text in the answer, had nothing been held back. Parts of one character have one place."""


@dataclass(frozen=True)
class Generation:
    """A whole answer. The token that ended it is not among `token_ids`; those of a stop string are."""

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = None
    """Of each token, where they were asked for and there is one."""


def stream(
    runner: Writer,
    tokenizer: TextTokenizer,
    prompt_ids: Sequence[int],
    config: GenerationConfig,
    *,
    held: int = 0,
    sampler: TokenPicker | None = None,
) -> Generator[Piece, None, None]:
    """Reads the prompt at the runner's position, with an empty piece after each call of it, and yields the answer.

    `runner.reset()` first begins a new text. `held`: the runner has read so many of the prompt's tokens, not all, already. `sampler`:
    picks the tokens in place of the configuration's own. Afterwards the runner holds the prompt and the answer, except the last token
    that was made if the answer did not end by itself.
    """
    if not len(prompt_ids):
        raise RuntimeFileError("the prompt has no tokens; a text begins with at least one")
    runner.require_left_to_right()
    runner.require_room(len(prompt_ids) - held)
    sampler = sampler or Sampler(config, prompt_ids)
    constraint = None if config.grammar is None else constrain(config.grammar, tokenizer, runner.vocab_size)
    # What was read is told, so that the text goes on from the prompt, with its leading space; a grammar's text is its tokens' bytes.
    decoder = tokenizer.stream_decoder(prompt_ids) if constraint is None else ByteDecoder(tokenizer.vocabulary)
    stops = StopFilter(config.stop)
    for _ in runner.reading(prompt_ids[held:-1]):
        yield Piece("", None)
    token, made, begins = int(prompt_ids[-1]), 0, 0
    while True:
        if made == config.max_new_tokens:
            reason: FinishReason = "length"
            break
        if made and runner.position == runner.cache_length:
            reason = "context"
            break
        logits = runner.step(token)
        token = sampler.pick(logits, None if constraint is None else constraint.allowed())
        if token in tokenizer.eos_ids and not config.ignore_eos:
            reason = "eos"
            break
        made += 1
        sampler.accept(token)
        told = None if config.logprobs is None else token_logprob(logits, token, config.logprobs, tokenizer.vocabulary)
        text = decoder.push(token)
        yield Piece(stops.push(text), token, None, told, begins=begins)
        begins += len(text)
        if constraint is not None:
            constraint.accept(token)
        if stops.found is not None or (constraint is not None and constraint.done):
            reason = "stop"
            break
    rest = stops.push(decoder.finish()) + stops.finish()
    yield Piece(rest, None, "stop" if stops.found is not None else reason, stop=stops.found)


def generate(runner: Writer, tokenizer: TextTokenizer, prompt_ids: Sequence[int], config: GenerationConfig) -> Generation:
    """The whole answer to the prompt, as a new text: the runner is reset first."""
    runner.reset()
    return joined(stream(runner, tokenizer, prompt_ids, config), prompt_ids)


def joined(stream: Iterable[Piece], prompt_ids: Sequence[int]) -> Generation:
    """A whole answer from its pieces."""
    pieces = list(stream)
    reason = pieces[-1].finish_reason
    assert reason is not None
    tokens = tuple(piece.token_id for piece in pieces if piece.token_id is not None)
    logprobs = tuple(piece.logprob for piece in pieces if piece.logprob is not None)
    return Generation("".join(piece.text for piece in pieces), tokens, tuple(map(int, prompt_ids)), reason, logprobs or None)
