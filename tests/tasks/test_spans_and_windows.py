"""Labels become stretches of the text in every scheme; long texts are cut so that each token counts once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatlm.tasks.spans import TokenLabel, read_spans, split_label
from flatlm.tasks.windows import cut, sentence_ends

TEXT = "abcdefgh"


def spans(*labels: str) -> list[tuple[str, str]]:
    tokens = [TokenLabel(label, place, place + 1) for place, label in enumerate(labels)]
    found = read_spans(tokens, TEXT)
    assert all(span.text == TEXT[span.start : span.end] for span in found)
    return [(span.label, span.text) for span in found]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("B-X", "I-X", "O", "B-Y", "I-Y", "I-Y"), [("X", "ab"), ("Y", "def")]),
        (("B-X", "B-X", "I-X"), [("X", "a"), ("X", "bc")]),  # side by side
        (("O", "I-X", "I-X", "I-Y", "O"), [("X", "bc"), ("Y", "d")]),  # not begun, and another kind
        (("B-X", "I-X", "E-X", "S-Y", "O"), [("X", "abc"), ("Y", "d")]),
        (("B-X", "E-X", "I-X", "S-X", "S-X"), [("X", "ab"), ("X", "c"), ("X", "d"), ("X", "e")]),
        (("B-X", "L-X", "U-Y"), [("X", "ab"), ("Y", "c")]),  # BILOU
        (("B-X", "M-X", "M-X", "E-X", "B-X", "E-X"), [("X", "abcd"), ("X", "ef")]),
        (("X", "X", "Y", "O", "Y"), [("X", "ab"), ("Y", "c"), ("Y", "e")]),  # no scheme
        (("O", "O"), []),
        ((), []),
    ],
)
def test_schemes(labels: tuple[str, ...], expected: list[tuple[str, str]]) -> None:
    assert spans(*labels) == expected


@pytest.mark.parametrize(
    ("label", "expected"), [("B-PER", ("B", "PER")), ("O", ("", None)), ("NN-X", ("", "NN-X")), ("B-", ("", "B-")), ("B", ("", "B"))]
)
def test_prefixes(label: str, expected: tuple[str, str | None]) -> None:
    assert split_label(label) == expected


@given(ends=st.lists(st.booleans(), max_size=80), longest=st.integers(1, 20))
def test_each_token_counts_once(ends: list[bool], longest: int) -> None:
    windows = cut(ends, longest)
    assert [place for window in windows for place in range(window.first, window.last)] == list(range(len(ends)))
    for window in windows:
        assert window.start <= window.first <= window.last <= window.stop <= window.start + longest
    assert len(windows) == 1 or len(ends) > longest


def test_cut_behind_sentences() -> None:
    ends = [False] * 20
    ends[6] = ends[3] = True
    assert [(window.start, window.stop) for window in cut(ends, 8)] == [(0, 7), (7, 15), (13, 20)]  # the second overlaps the third
    assert [(window.first, window.last) for window in cut(ends, 8)] == [(0, 7), (7, 14), (14, 20)]


def test_where_sentences_end() -> None:
    text = "Hi. You\nthere 你好。x"
    offsets = [(0, 2), (2, 3), (4, 7), (8, 13), (14, 15), (15, 16), (16, 17), (17, 18)]
    assert sentence_ends(text, offsets) == [False, True, True, False, False, False, True, False]
