"""Text from an encoder with a decoder: token by token as it comes, or whole. Greedy or sampled; there are no beams."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from flatlm.generative import generate as decoders
from flatlm.generative.encoder_decoders.runner import EncoderDecoderRunner
from flatlm.generative.generate import Generation, Piece, StreamDecoder, TextTokenizer
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.sampling import Allowed, Sampler
from flatlm.layers.encoder_decoder_config import WritingConfig
from flatlm.utilities.tokenizing.vocabulary import Vocabulary


def stream(runner: EncoderDecoderRunner, tokenizer: TextTokenizer, ids: Sequence[int], config: GenerationConfig) -> Iterator[Piece]:
    """Reads `ids` and yields what is written about them; `tokenizer` is that of what is written.

    The first token, and the last one of a text that is as long as it may be, are what the model's files force them to be, as
    transformers has it. Other settings of generation_config.json (beams, penalties, least lengths) are not heeded.
    """
    runner.read(ids)
    writing, room, most = runner.file.writing, runner.cache_length, config.max_new_tokens
    framed = _Framed(Sampler(config), writing, room if most is None else min(room, most))
    written = _Written(tokenizer, writing.ends)
    for piece in decoders.stream(runner, written, [writing.start], config, sampler=framed):
        cut = piece.finish_reason == "eos" and framed.cut
        yield replace(piece, finish_reason="length" if framed.made == most else "context") if cut else piece


def generate(runner: EncoderDecoderRunner, tokenizer: TextTokenizer, ids: Sequence[int], config: GenerationConfig) -> Generation:
    """The whole of what is written about `ids`."""
    return decoders.joined(stream(runner, tokenizer, ids, config), ids)


class _Framed:
    """Another sampler's picks, but for tokens that are forced, in a text of at most `limit` tokens."""

    def __init__(self, inner: Sampler, writing: WritingConfig, limit: int) -> None:
        self._inner, self._writing, self._limit = inner, writing, limit
        self.made = 0
        self.cut = False
        """Whether the last token was forced upon a text that would have gone on."""

    def pick(self, logits: NDArray[Any], allowed: Allowed | None = None) -> int:
        self.made += 1
        picked = self._inner.pick(logits, allowed)
        if self.made == self._limit and self._writing.forced_last is not None:
            self.cut = picked not in self._writing.ends
            return self._writing.forced_last
        if self.made == 1 and self._writing.forced_first is not None:
            return self._writing.forced_first
        return picked

    def accept(self, token: int) -> None:
        self._inner.accept(token)


class _Written:
    """A tokenizer whose texts end as the model's do, and go on from nothing: what was read is another text."""

    def __init__(self, tokenizer: TextTokenizer, ends: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self.eos_ids = ends

    @property
    def vocabulary(self) -> Vocabulary:
        return self._tokenizer.vocabulary

    def stream_decoder(self, context: Sequence[int] = ()) -> StreamDecoder:
        return self._tokenizer.stream_decoder()
