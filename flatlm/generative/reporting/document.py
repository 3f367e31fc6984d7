"""What a report says, apart from how it is written down: sections of paragraphs, tables, plots. HTML and Markdown are made of it."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What a cell of a table is."""

    TEXT = "text"
    NUMBER = "number"
    CODE = "code"
    MISSING = "missing"
    """It was not measured."""
    GOOD = "good"
    BAD = "bad"


@dataclass(frozen=True)
class Cell:
    """`link`: the anchor of what the text names."""

    text: str
    kind: Kind = Kind.TEXT
    link: str | None = None


@dataclass(frozen=True)
class Table:
    """The first cell of each row is its header."""

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def numeric(self) -> list[bool]:
        """Which columns hold numbers, or say that there is none."""
        numbers = (Kind.NUMBER, Kind.MISSING)
        return [bool(self.rows) and all(row[i].kind in numbers for row in self.rows) for i in range(len(self.headers))]


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Style:
    """Colours and room of one drawing of a plot. Colours are those of matplotlib."""

    narrow: bool
    foreground: str
    muted: str
    background: str
    series: tuple[str, ...]
    """For one line after another."""


@dataclass(frozen=True)
class Plot:
    """`name`: part of its file's name. `alt`: what it shows, in words. `draw`: on a matplotlib figure."""

    name: str
    title: str
    alt: str
    caption: str
    draw: Callable[[Any, Style], None]


@dataclass(frozen=True)
class Folded:
    """Details that a reader opens; `open`: at first."""

    title: str
    anchor: str
    blocks: "tuple[Block, ...]"
    open: bool = False


Block = Paragraph | Table | Plot | Folded


@dataclass(frozen=True)
class Section:
    title: str
    anchor: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    title: str
    subtitle: str
    sections: tuple[Section, ...]

    def plots(self) -> list[Plot]:
        """All of them, in their order; plots are never folded away."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Plot)]


MISSING = Cell("not measured", Kind.MISSING)
NOT_KNOWN = Cell("not known", Kind.MISSING)
