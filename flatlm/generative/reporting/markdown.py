"""A report as Markdown for a README, its plots in PNG files beside it."""

import re
from collections.abc import Mapping

from flatlm.generative.reporting.document import Block, Cell, Document, Folded, Kind, Paragraph, Plot, Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$!])")


def render(document: Document, pictures: Mapping[str, str]) -> str:
    """`pictures`: of each plot's name, the file's, as the Markdown names it. All text is escaped, so that no name is read as markup."""
    lines = [f"# {_text(document.title)}", "", _text(document.subtitle), ""]
    for section in document.sections:
        lines += [f"## {_text(section.title)}", ""]
        for block in section.blocks:
            lines += _block(block, pictures)
    return "\n".join(lines).rstrip() + "\n"


def _block(block: Block, pictures: Mapping[str, str]) -> list[str]:
    match block:
        case Paragraph(text):
            return [_text(text), ""]
        case Plot():
            return [f"![{_text(block.alt)}](<{pictures[block.name]}>)", "", f"*{_text(block.caption)}*", ""]
        case Table():
            return _table(block)
        case Folded(title, _, blocks, _):
            inner = [line for one in blocks for line in _block(one, pictures)]
            return ["<details>", f"<summary>{_html(title)}</summary>", "", *inner, "</details>", ""]


def _table(table: Table) -> list[str]:
    return [
        f"**{_text(table.caption)}**",
        "",
        f"| {' | '.join(map(_text, table.headers))} |",
        f"|{'|'.join('---:' if number else '---' for number in table.numeric())}|",
        *(f"| {' | '.join(map(_cell, row))} |" for row in table.rows),
        "",
    ]


def _cell(cell: Cell) -> str:
    text = _text(cell.text)
    return {Kind.MISSING: f"*{text}*", Kind.GOOD: text, Kind.BAD: f"**{text}**"}.get(cell.kind, text)


def _text(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", _html(" ".join(text.split())))


def _html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
