"""sequence-labeling and ner: a label for each token, and the stretches that they mark, by the likeliest label or the CRF's best path."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flatlm.errors import RuntimeFileError
from flatlm.tasks.crf import Crf
from flatlm.tasks.reading import Array, ReadingTask
from flatlm.tasks.spans import Span, TokenLabel, read_spans
from flatlm.tasks.windows import cut, sentence_ends
from flatlm.utilities.tokenizing.encoded_text import EncodedText


@dataclass(frozen=True)
class Labeling:
    """`spans`: the labelled stretches. `tokens`: every token of the text with its label."""

    spans: tuple[Span, ...]
    tokens: tuple[TokenLabel, ...]


class LabelingTask(ReadingTask):
    """A head over each token. A text that is too long for the file is read in windows that are cut where sentences end."""

    options: ClassVar[tuple[str, ...]] = ("whole_words",)

    def predict(self, text: str, *, whole_words: bool = False) -> Labeling:  # type: ignore[override]
        """A text's labels. `whole_words`: the tokens of a word all have the label of its first one, as where others were not trained."""
        encoded = self.tokenizer.encode_text(text)
        own = [place for place, which in enumerate(encoded.sequence) if which is not None]
        offsets = [_without_spaces(text, *encoded.offsets[place]) for place in own]
        path = self.path(encoded, text)
        if whole_words:
            path = _of_first_tokens(path, offsets, text)
        tokens = tuple(TokenLabel(self.labels[label], start, end) for label, (start, end) in zip(path, offsets, strict=True))
        return Labeling(read_spans(tokens, text), tokens)

    def path(self, encoded: EncodedText, text: str) -> NDArray[np.int64]:
        """Of each token of the text, which label it has: [n]."""
        before, after = encoded.framed
        emissions = self.emissions(encoded, text)
        labels = emissions.argmax(-1) if self.crf is None else self.crf.decode(emissions)
        return labels[before : len(labels) - after]

    def emissions(self, encoded: EncodedText, text: str) -> Array:
        """The labels' scores [n, L] of all tokens, those that frame the text too, which a CRF's path goes through.

        Of a text in several windows each token has those of the window in which it is further from an edge.
        """
        before, after = encoded.framed
        count = len(encoded.ids) - before - after
        room = self.longest - before - after
        if room < 1:
            raise RuntimeFileError(f"{self.file}: its {self.longest} tokens hold no text beside {before + after} special ones")
        head, tail = encoded.ids[:before], encoded.ids[before + count :]
        rows: list[Array] = []
        windows = cut(sentence_ends(text, encoded.offsets[before : before + count]), room)
        for window in windows:
            ids = (*head, *encoded.ids[before + window.start : before + window.stop], *tail)
            scores = self.read_ids(ids, (0,) * len(ids), "logits")
            first = 0 if window is windows[0] else before + window.first - window.start
            last = len(scores) if window is windows[-1] else before + window.last - window.start
            rows.append(scores[first:last])
        return np.concatenate(rows)

    @cached_property
    def crf(self) -> Crf | None:
        """The checkpoint's, where it had one."""
        facts = self.manifest.get("crf")
        return None if facts is None else Crf.from_facts(facts)


def _without_spaces(text: str, start: int, end: int) -> tuple[int, int]:
    """A token's characters without the white space that tokenizers may count to it."""
    own = text[start:end]
    return (start + len(own) - len(own.lstrip()), end - len(own) + len(own.rstrip())) if own.strip() else (start, end)


def _of_first_tokens(path: NDArray[np.int64], offsets: list[tuple[int, int]], text: str) -> NDArray[np.int64]:
    """The path where a token that goes on with a word, letter by letter, has the label of the token before it."""
    labels = path.copy()
    for place in range(1, len(labels)):
        (_, end), (start, _) = offsets[place - 1 : place + 1]
        if 0 < end == start < len(text) and _in_word(text[end - 1]) and _in_word(text[start]):
            labels[place] = labels[place - 1]
    return labels


def _in_word(character: str) -> bool:
    """Whether a character makes up words with its neighbours; those of Chinese are words by themselves."""
    return character.isalnum() and not "\u3400" <= character <= "\u9fff"
