"""What all tasks that read a text with an encoder share: the text to tokens that fit, tokens to the model's outputs."""

import numpy as np
from numpy.typing import NDArray

from flatlm.errors import RuntimeFileError
from flatlm.tasks.runner import OpenedFile, TaskRunner
from flatlm.tasks.table import load
from flatlm.utilities.tokenizing.encoded_text import EncodedText

Array = NDArray[np.float32]


class ReadingTask(TaskRunner):
    """A task of an encoder. `longest`: the most tokens of a text, those that frame it among them."""

    def __init__(self, opened: OpenedFile) -> None:
        super().__init__(opened)
        self._runner = load("flatlm.generative.encoders.runner:EncoderRunner").open(opened.file, threads=opened.threads)
        self.longest: int = self._runner.file.longest

    def close(self) -> None:
        self._runner.close()

    def encode(self, text: str, pair: str | None = None, *, truncate: bool = False) -> EncodedText:
        """A text's tokens. Raises RuntimeFileError where they are more than the file reads, unless they are to be cut to what it reads."""
        encoded = self.tokenizer.encode_text(text, pair)
        if len(encoded.ids) <= self.longest or truncate:
            return shortened(encoded, self.longest)
        raise RuntimeFileError(
            f"{self.file}: a text of {len(encoded.ids)} tokens does not fit; it reads {self.longest}. Cut it (truncate, --truncate), or "
            "export the model with a longer --prefill"
        )

    def read(self, encoded: EncodedText, name: str) -> Array:
        """One of the model's outputs for a text: [n, D] of its tokens, or [D]."""
        return self.read_ids(encoded.ids, encoded.type_ids, name)

    def read_ids(self, ids: tuple[int, ...], type_ids: tuple[int, ...], name: str) -> Array:
        """The same, of tokens."""
        output: Array = self._runner.run(ids, type_ids if self._runner.file.has_token_types else None)[name]
        return output

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what the model gives."""
        outputs: tuple[str, ...] = self._runner.file.outputs
        return outputs

    def width(self, name: str) -> int:
        """The last dimension of an output."""
        return int(next(iter(self._runner.file.signatures.values())).outputs[name].shape[-1])

    @property
    def vocab_size(self) -> int:
        """How many tokens the model knows; 0 where its file does not say."""
        size: int = self._runner.file.vocab_size
        return size

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the logits' columns."""
        labels: tuple[str, ...] = self._runner.file.labels
        return labels


def shortened(encoded: EncodedText, longest: int) -> EncodedText:
    """The same in at most `longest` tokens: the longer text of a pair loses its last ones first, special tokens stay.

    RuntimeFileError where these alone are more.
    """
    special = [place for place, own in enumerate(encoded.sequence) if own is None]
    texts = [[place for place, own in enumerate(encoded.sequence) if own == which] for which in (0, 1)]
    while len(special) + sum(map(len, texts)) > longest:
        if not any(texts):
            raise RuntimeFileError(f"{longest} tokens do not hold the {len(special)} special ones around a text")
        max(texts, key=len).pop()
    kept = sorted([*special, *texts[0], *texts[1]])
    return EncodedText(
        tuple(encoded.ids[place] for place in kept),
        tuple(encoded.type_ids[place] for place in kept),
        tuple(encoded.offsets[place] for place in kept),
        tuple(encoded.sequence[place] for place in kept),
    )


def softmax(logits: Array) -> NDArray[np.float64]:
    """Probabilities along the last dimension."""
    exponents = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    total: NDArray[np.float64] = exponents / exponents.sum(-1, keepdims=True)
    return total


def sigmoid(logits: Array) -> NDArray[np.float64]:
    """The probability of each by itself."""
    return 1 / (1 + np.exp(-logits.astype(np.float64)))
