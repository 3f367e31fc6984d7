"""CPM's way with Chinese text (Zhang et al. 2020): words are cut first, joined by spaces, and only then go through the SentencePiece model.

A space of the text is U+2582 and a newline U+2583, so that the model's own spaces only part words. Words are cut by jieba, as the models
were trained with, where it is installed (`pip install jieba`, or rjieba); else by the longest piece of the vocabulary that begins a word,
from left to right, which gives other ids now and then. A file's manifest tells one from the other.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from flatlm.errors import TokenizerError
from flatlm.utilities.tokenizing.backends import SentencePieceBackend
from flatlm.utilities.tokenizing.settings import TokenizerSettings

SPACE, NEWLINE = "\u2582", "\u2583"
_WRITTEN = str.maketrans(" \n", SPACE + NEWLINE)
_READ = str.maketrans(SPACE + NEWLINE, " \n", " ")


class CpmBackend(SentencePieceBackend):
    """A SentencePiece model over cut words. Special tokens are found first, as in any text; nothing is added around it."""

    def __init__(self, data: bytes, settings: TokenizerSettings, source: Path) -> None:
        super().__init__(data, settings, source)
        self._source = source

    def _stretch(self, text: str, *, first: bool) -> list[int]:
        words = [word.translate(_WRITTEN) for word in self._cut(text)]
        return list(self._model.encode(" ".join(words)))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return super().decode(ids, skip_special_tokens).translate(_READ)

    def certain_text(self, token_id: int) -> str | None:
        """None: which spaces are written depends on where they are."""
        return None

    def _piece_bytes(self, token_id: int) -> bytes:
        return super()._piece_bytes(token_id).decode().translate(_READ).encode()

    def to_bytes(self) -> bytes:
        """Raises TokenizerError: a model alone cannot say that words are cut."""
        raise TokenizerError(f"{self._source}: cuts words before it encodes them, which no bundle can say: export a .tflite file")

    @cached_property
    def _cut(self) -> Callable[[str], Sequence[str]]:
        for name in ("jieba", "rjieba"):
            if find_spec(name) is not None:
                cutter = importlib.import_module(name)
                return lambda text: list(cutter.cut(text))
        return self._cut_by_pieces

    def _cut_by_pieces(self, text: str) -> list[str]:
        """Without jieba: the longest pieces that begin a word, one after the other; what begins none is a word of one character."""
        words, begin = [], 0
        while begin < len(text):
            ends = range(min(len(text), begin + self._longest), begin + 1, -1)
            end = next((end for end in ends if text[begin:end] in self._words), begin + 1)
            words.append(text[begin:end])
            begin = end
        return words

    @cached_property
    def _words(self) -> frozenset[str]:
        pieces = (self._model.id_to_piece(i) for i in range(self._model.get_piece_size()))
        return frozenset(piece[1:] for piece in pieces if piece.startswith("▁") and len(piece) > 2)

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._words), default=1)
