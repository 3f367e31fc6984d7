"""Text on its way out, cut at stop strings, against the plain definition over the whole text."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from flatlm.generative.stops import StopFilter

texts = st.text("abc", max_size=40) | st.text(max_size=40)
stop_lists = st.lists(st.text("abc", min_size=1, max_size=5) | st.text(min_size=1, max_size=3), max_size=4)


def up_to_the_first(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the occurrence that ends first, of those that end there the one that begins first; and which."""
    found = [(place + len(stop), place, stop) for stop in stops if (place := text.find(stop)) >= 0]
    _, place, stop = min(found, default=(0, len(text), None))
    return text[:place], stop


@st.composite
def cut_texts(draw):
    text = draw(texts)
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=10)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@settings(deadline=None)
@given(cut_texts(), stop_lists)
@example(["ab", "c", "d"], ["bcd", "c"])  # the shorter is complete first
@example(["aab", "aac"], ["aabaac", "aac"])  # both end at once: the longer
@example(["aaa", "ab"], ["aab"])  # it falls back within a repetition
def test_the_text_is_that_before_the_first_stop(pieces, stops):
    text, expected = "".join(pieces), up_to_the_first("".join(pieces), stops)
    stopper, given_out, read = StopFilter(stops), "", ""
    for piece in pieces:
        given_out += stopper.push(piece)
        read += piece
        before, found = up_to_the_first(read, stops)
        assert stopper.found == found
        if found is None:
            # Exactly what may still become a stop is held back.
            may_be = [n for stop in stops for n in range(1, len(stop)) if read.endswith(stop[:n])]
            assert given_out == read[: len(read) - max(may_be, default=0)]
        else:
            assert given_out == before
    given_out += stopper.finish()
    assert (given_out, stopper.found) == expected
    assert text.startswith(given_out)


def test_nothing_comes_after_a_stop():
    stopper = StopFilter(["b"])
    assert [stopper.push(piece) for piece in ("ab", "ab", "c")] == ["a", "", ""]
    assert stopper.finish() == ""
