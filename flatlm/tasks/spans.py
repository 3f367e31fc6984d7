"""Labels of tokens to labelled stretches of the text: the schemes BIO, BIOES (and BILOU) and BMES, and labels without a scheme."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

OUTSIDE = "O"
_BEGINNING, _ENDING = frozenset("BSU"), frozenset("ELSU")
_SCHEME = frozenset("BIMELSU")


@dataclass(frozen=True)
class Span:
    """A labelled stretch of a text: its characters [start, end), what they are, and the text itself."""

    label: str
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class TokenLabel:
    """One token's label: the characters [start, end) that the token covers."""

    label: str
    start: int
    end: int


def read_spans(tokens: Iterable[TokenLabel], text: str) -> tuple[Span, ...]:
    """The stretches that the tokens' labels mark, in the text's order.

    `B-X` begins a stretch of X; `I-X` or `M-X` goes on with one; `E-X` or `L-X` ends it; `S-X` or `U-X` is one by itself; `O` is outside. A
    label that continues what was not begun begins it, as conlleval reads it. Labels without a prefix, such as `X`: neighbours of the same
    label are one stretch.
    """
    spans: list[Span] = []
    kind: str | None = None
    first = last = 0

    def close() -> None:
        nonlocal kind
        if kind is not None:
            spans.append(Span(kind, first, last, text[first:last]))
        kind = None

    for token in tokens:
        prefix, label = split_label(token.label)
        if label is None:
            close()
            continue
        if prefix in _BEGINNING or kind != label:
            close()
            kind, first = label, token.start
        last = token.end
        if prefix in _ENDING:
            close()
    close()
    return tuple(spans)


def split_label(label: str) -> tuple[str, str | None]:
    """`B-PER` as ("B", "PER"), `PER` as ("", "PER"), `O` as ("", None): outside."""
    if label == OUTSIDE:
        return "", None
    prefix, dash, rest = label.partition("-")
    return (prefix, rest) if dash and prefix in _SCHEME and rest else ("", label)


def label_names(labels: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """The labels' names, or LABEL_0, LABEL_1, ... as transformers calls those that have none."""
    return tuple(labels) if labels is not None else tuple(f"LABEL_{index}" for index in range(count))
