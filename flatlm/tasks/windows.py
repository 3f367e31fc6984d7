"""Texts that are longer than a file's longest signature, cut into windows whose tokens each count once."""

from collections.abc import Sequence
from dataclasses import dataclass

SENTENCE_ENDS = frozenset(".!?;…\n。！？；")  # noqa: RUF001 - the full-width ones of Chinese
"""Characters after which a text may be cut without harm."""


@dataclass(frozen=True)
class Window:
    """Tokens [start, stop) are read together; of those, [first, last) are taken from this window."""

    start: int
    stop: int
    first: int
    last: int


def cut(ends: Sequence[bool], longest: int) -> tuple[Window, ...]:
    """Windows of at most `longest` tokens over a text; `ends[i]`: a sentence ends with token i.

    A window is cut behind the last sentence of its second half. Where none ends there, it overlaps the next by a quarter, and each of them
    gives the half of that quarter which is further from its edge.
    """
    if longest < 1:
        raise ValueError(f"windows of {longest} tokens")
    count, overlap = len(ends), longest // 4
    windows: list[Window] = []
    start = first = 0
    while count - start > longest:
        stop = start + longest
        sentence = next((place for place in range(stop, start + longest // 2, -1) if ends[place - 1]), None)
        if sentence is not None:
            windows.append(Window(start, sentence, first, sentence))
            start = first = sentence
        else:
            middle = stop - (overlap + 1) // 2
            windows.append(Window(start, stop, first, middle))
            start, first = stop - overlap, middle
    if first < count or not windows:
        windows.append(Window(start, count, first, count))
    return tuple(windows)


def sentence_ends(text: str, offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """Of each token, whether a sentence ends with its last character, or with white space that holds a line's end behind it."""
    ends = []
    for index, (start, stop) in enumerate(offsets):
        following = offsets[index + 1][0] if index + 1 < len(offsets) else len(text)
        ends.append(start < stop and (text[stop - 1] in SENTENCE_ENDS or "\n" in text[stop:following]))
    return ends
