"""A folder of results as one report: a page, or Markdown with its plots beside it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from flatlm.convert.atomic_file import atomic_output
from flatlm.errors import OutputError
from flatlm.generative.reporting import html, markdown
from flatlm.generative.reporting.collect import collect
from flatlm.generative.reporting.document import Plot
from flatlm.generative.reporting.sections import build
from flatlm.generative.reporting.svg import require_plots, write_png

SUFFIXES = (".html", ".md")


@dataclass(frozen=True)
class WrittenReport:
    """`files`: exported ones that it tells of. `plots`: the PNG files that were written."""

    output: Path
    files: int
    sections: tuple[str, ...]
    plots: tuple[Path, ...]


def report(folder: Path, output: Path, *, plots: Path | None = None) -> WrittenReport:
    """Write what is known of the exported files in a folder, by the output's suffix; `plots`: a folder for PNG plots too.

    Raises RuntimeFileError where the folder has nothing to report or a damaged result, OutputError where it cannot be written.
    """
    if output.suffix not in SUFFIXES:
        raise OutputError(f"{output}: the suffix says the format; use {' or '.join(SUFFIXES)}")
    findings = collect(folder)
    document = build(findings)
    if document.plots():
        require_plots()
    written = _write_plots(document.plots(), plots, "") if plots is not None else ()
    if output.suffix == ".html":
        text = html.render(document)
    else:
        beside = {plot.name: f"{output.stem}_{plot.name}.png" for plot in document.plots()}
        written += _write_plots(document.plots(), output.parent, f"{output.stem}_")
        text = markdown.render(document, {name: quote(file) for name, file in beside.items()})
    with atomic_output(output) as temporary:
        temporary.write_text(text, "utf-8")
    return WrittenReport(output, len(findings.subjects), tuple(section.title for section in document.sections), written)


def _write_plots(plots: Iterable[Plot], folder: Path, prefix: str) -> tuple[Path, ...]:
    paths = []
    for plot in plots:
        path = folder / f"{prefix}{plot.name}.png"
        write_png(plot, path)
        paths.append(path)
    return tuple(paths)
