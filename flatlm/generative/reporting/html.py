"""A report as one page that needs nothing else: no script, no font, no picture from anywhere."""

from html import escape

from flatlm.generative.reporting.document import Block, Cell, Document, Folded, Kind, Paragraph, Plot, Section, Table
from flatlm.generative.reporting.style_sheet import STYLE_SHEET
from flatlm.generative.reporting.svg import inline_svg

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""Nothing may be loaded or run, also if a name in the report tried to."""


WRAPPED = 9
"""Characters from which on the heading of a column of numbers may be broken into lines."""
SHORT = 26
"""Characters of a cell that are kept on one line."""


def render(document: Document) -> str:
    """The page. All text is escaped."""
    links = "".join(f'<li><a href="#{_text(section.anchor)}">{_text(section.title)}</a></li>' for section in document.sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_text(POLICY)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_text(document.title)}</title>
<link rel="icon" href="data:,">
<style>{STYLE_SHEET}</style>
</head>
<body>
<header>
<h1>{_text(document.title)}</h1>
<p class="subtitle">{_text(document.subtitle)}</p>
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{"".join(map(_section, document.sections))}</main>
</body>
</html>
"""


def _section(section: Section) -> str:
    anchor = _text(section.anchor)
    blocks = "".join(map(_block, section.blocks))
    return f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{_text(section.title)}</h2>\n{blocks}</section>\n'


def _block(block: Block) -> str:
    match block:
        case Paragraph(text):
            return f"<p>{_text(text)}</p>\n"
        case Table():
            return _table(block)
        case Plot():
            return _plot(block)
        case Folded(title, anchor, blocks, shown):
            inner = "".join(map(_block, blocks))
            return (
                f'<details id="{_text(anchor)}"{" open" if shown else ""}>\n<summary><h3>{_text(title)}</h3></summary>\n{inner}</details>\n'
            )


def _plot(plot: Plot) -> str:
    """Drawn twice: at a phone's width the wide one's letters would be too small."""
    wide, narrow = inline_svg(plot, narrow=False), inline_svg(plot, narrow=True)
    return (
        f'<figure>\n<h3>{_text(plot.title)}</h3>\n<div class="wide">{wide}</div>\n<div class="narrow">{narrow}</div>\n'
        f"<figcaption>{_text(plot.caption)}</figcaption>\n</figure>\n"
    )


def _table(table: Table) -> str:
    numeric = table.numeric()
    head = "".join(
        f'<th scope="col"{_heading(header) if right else ""}>{_text(header)}</th>' if header else "<td></td>"
        for header, right in zip(table.headers, numeric, strict=True)
    )
    rows = "".join(
        "<tr>" + "".join(_cell(cell, first=i == 0, right=numeric[i]) for i, cell in enumerate(row)) + "</tr>\n" for row in table.rows
    )
    caption = _text(table.caption)
    return (
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0">\n<table>\n<caption>{caption}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
    )


def _heading(text: str) -> str:
    return ' class="number wrapped"' if len(text) > WRAPPED else ' class="number"'


def _cell(cell: Cell, *, first: bool, right: bool) -> str:
    tag, scope = ("th", ' scope="row"') if first else ("td", "")
    names = [cell.kind.value] if cell.kind not in (Kind.TEXT, Kind.NUMBER) else []
    names += ["number"] if right else ["short"] if len(cell.text) <= SHORT else []
    classes = " ".join(names)
    text = _text(cell.text)
    if cell.link is not None:
        text = f'<a href="#{_text(cell.link)}">{text}</a>'
    chosen = f' class="{classes}"' if classes else ""
    return f"<{tag}{scope}{chosen}>{text}</{tag}>"


def _text(text: str) -> str:
    return escape(text, quote=True)
