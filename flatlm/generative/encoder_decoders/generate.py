"""Text from an encoder with a decoder: token by token as it comes, or whole. Greedy or sampled; there are no beams."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from flatlm.generative import generate as decoders
from flatlm.generative.encoder_decoders.runner import EncoderDecoderRunner
from flatlm.generative.generate import Generation, Piece, StreamDecoder, TextTokenizer
from flatlm.generative.sampling import Sampler
from flatlm.layers.encoder_decoder_config import WritingConfig


def stream(
    runner: EncoderDecoderRunner,
    tokenizer: TextTokenizer,
    ids: Sequence[int],
    *,
    max_new_tokens: int | None = None,
    sampler: Sampler | None = None,
) -> Iterator[Piece]:
    """Reads `ids` and yields what is written about them; `tokenizer` is that of what is written.

    The first token, and the last one of a text that is as long as it may be, are what the model's files force them to be, as
    transformers has it. Other settings of generation_config.json (beams, penalties, least lengths) are not heeded.
    """
    runner.read(ids)
    writing, room = runner.file.writing, runner.cache_length
    framed = _Framed(sampler or Sampler(), writing, room if max_new_tokens is None else min(room, max_new_tokens))
    written = _Written(tokenizer, writing.ends)
    for piece in decoders.stream(runner, written, [writing.start], max_new_tokens=max_new_tokens, sampler=framed):
        cut = piece.finish_reason == "eos" and framed.cut
        yield replace(piece, finish_reason="length" if framed.made == max_new_tokens else "context") if cut else piece


def generate(
    runner: EncoderDecoderRunner,
    tokenizer: TextTokenizer,
    ids: Sequence[int],
    *,
    max_new_tokens: int | None = None,
    sampler: Sampler | None = None,
) -> Generation:
    """The whole of what is written about `ids`."""
    return decoders.joined(stream(runner, tokenizer, ids, max_new_tokens=max_new_tokens, sampler=sampler), ids)


class _Framed(Sampler):
    """Another sampler's picks, but for tokens that are forced, in a text of at most `limit` tokens."""

    def __init__(self, inner: Sampler, writing: WritingConfig, limit: int) -> None:
        self._inner, self._writing, self._limit = inner, writing, limit
        self.made = 0
        self.cut = False
        """Whether the last token was forced upon a text that would have gone on."""

    def pick(self, logits: NDArray[Any]) -> int:
        self.made += 1
        picked = self._inner.pick(logits)
        if self.made == self._limit and self._writing.forced_last is not None:
            self.cut = picked not in self._writing.ends
            return self._writing.forced_last
        if self.made == 1 and self._writing.forced_first is not None:
            return self._writing.forced_first
        return picked


class _Written:
    """A tokenizer whose texts end as the model's do, and go on from nothing: what was read is another text."""

    def __init__(self, tokenizer: TextTokenizer, ends: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self.eos_ids = ends

    def stream_decoder(self, context: Sequence[int] = ()) -> StreamDecoder:
        return self._tokenizer.stream_decoder()
