"""Plots as pictures: SVG whose colours are the page's own, so that one drawing fits light and dark, and PNG."""

import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter
from xml.etree import ElementTree

from flatlm.convert.atomic_file import atomic_output
from flatlm.errors import OutputError
from flatlm.generative.reporting.document import Plot, Style

SERIES = ("#0b62a4", "#c2410c", "#0f766e", "#7c3aed", "#a16207", "#be185d", "#4d7c0f", "#475569")
"""For a white ground; each at least 4.5 to 1 against it."""
DARK_SERIES = ("#6cb6ff", "#ff9a5c", "#4fd1b5", "#c4a3ff", "#e3b341", "#ff8fc0", "#a3d65c", "#b6c2d1")
"""The same for a dark one."""
_STAND_INS = tuple(f"#0a0b{i:02x}" for i in range(len(SERIES)))
_VARIABLES = {"#010203": "--ink", "#040506": "--muted", "#070809": "--paper"} | {name: f"--series-{i}" for i, name in enumerate(_STAND_INS)}
"""Colours that stand for variables of the page's style sheet while matplotlib draws."""
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_FONT = re.compile(r"font: *(?:[a-z]+ +)?([0-9.]+)px [^;]*")
_FAMILY = re.compile(r"font-family: [^;]*;? *")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def require_plots() -> None:
    """OutputError, with the way out, where matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise OutputError("a plot needs matplotlib: pip install 'flatlm[plots]'")


def inline_svg(plot: Plot, *, narrow: bool) -> str:
    """An `<svg>` element for a page that sets the variables; its text is text, in the page's font."""
    style = Style(narrow, "#010203", "#040506", "#070809", _STAND_INS)
    with _figure(plot, style) as figure:
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(out.getvalue())
    for child in list(root):
        if child.tag.endswith("metadata"):
            root.remove(child)
    prefix = f"{plot.name}-{'narrow' if narrow else 'wide'}-"
    used = set(_references(root))
    for element in root.iter():
        _adapt(element, prefix, used)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-label", plot.alt)
    return ElementTree.tostring(root, encoding="unicode")


def write_png(plot: Plot, path: Path) -> None:
    """On white, 150 pixels an inch. Raises OutputError."""
    with _figure(plot, Style(False, "#1b1f24", "#6b7480", "white", SERIES)) as figure, atomic_output(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, facecolor="white")


@contextmanager
def _figure(plot: Plot, style: Style) -> Iterator[Any]:
    require_plots()
    import matplotlib
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "svg.hashsalt": plot.name, "text.parse_math": False, "font.size": 9}
    logger = logging.getLogger("matplotlib.font_manager")
    level = logger.level
    with matplotlib.rc_context(settings), catch_warnings():
        simplefilter("ignore")  # of glyphs that matplotlib's own font lacks: the page's has them
        logger.setLevel(logging.ERROR)
        try:
            figure = Figure(figsize=(3.7, 3.2) if style.narrow else (7.6, 4.2), dpi=72, layout="constrained", facecolor="none")
            plot.draw(figure, style)
            yield figure
        finally:
            logger.setLevel(level)


def _references(root: ElementTree.Element) -> Iterator[str]:
    for element in root.iter():
        for name, value in element.attrib.items():
            yield from _REFERENCE.findall(value)
            if name.endswith("href") and value.startswith("#"):
                yield value[1:]


def _adapt(element: ElementTree.Element, prefix: str, used: set[str]) -> None:
    """Colours to variables, ids to ones that no other drawing of the page has, fonts to the page's."""
    for name, value in list(element.attrib.items()):
        if name == "id":
            if value in used:
                element.set("id", prefix + value)
            else:
                del element.attrib["id"]
        elif name.endswith("href") and value.startswith("#"):
            element.set(name, f"#{prefix}{value[1:]}")
        else:
            for color, variable in _VARIABLES.items():
                value = value.replace(color, f"var({variable})")
            value = _REFERENCE.sub(lambda match: f"url(#{prefix}{match[1]})", value)
            element.set(name, _FAMILY.sub("", _FONT.sub(r"font-size: \1px", value)))
