"""Markdown to HTML that a page may show: no HTML of the text's own, no pictures, links to http, https and mailto alone."""

from collections.abc import Iterable
from functools import cache
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

SCHEMES = ("http", "https", "mailto")
_OPTIONS = {"html": False, "breaks": True, "maxNesting": 60}
_ALIGNMENTS = {f"text-align:{side}": side for side in ("left", "center", "right")}


class _Markdown(MarkdownIt):
    def validateLink(self, url: str) -> bool:  # noqa: N802
        """A link that is not admitted stays text."""
        try:
            return urlsplit(url.strip()).scheme.lower() in SCHEMES
        except ValueError:
            return False


def to_html(text: str) -> str:
    """Of CommonMark with tables and strikethrough, whose lines end where they end. Links open beside the page."""
    tokens = _markdown().parse(text)
    _settle(tokens)
    html: str = _markdown().renderer.render(tokens, _markdown().options, {})
    return html


@cache
def _markdown() -> MarkdownIt:
    return _Markdown("commonmark", _OPTIONS).enable(["table", "strikethrough"]).disable("image")


def _settle(tokens: Iterable[Token]) -> None:
    for token in tokens:
        if token.type == "link_open":
            token.attrSet("rel", "noopener noreferrer")
            token.attrSet("target", "_blank")
        if (style := token.attrs.pop("style", None)) in _ALIGNMENTS:  # the page's policy admits no style
            token.attrSet("class", _ALIGNMENTS[str(style)])
        _settle(token.children or ())
