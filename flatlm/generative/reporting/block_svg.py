"""The picture of a file's blocks: SVG by hand, in the colours of the viewer's light or dark."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from flatlm.convert.atomic_file import atomic_output
from flatlm.errors import OutputError
from flatlm.generative.file_content import TensorSpec
from flatlm.generative.reporting.block_graph import BlockGraph, Part, Stack
from flatlm.generative.reporting.collect import named
from flatlm.generative.reporting.figures import count, figures, number, printable, shortened

WIDTH, MARGIN, ROW, GAP = 760, 24, 30, 18
TIMES = "\u00d7"
_STYLE = """text{font:14px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:currentColor}
svg{color:#1b1f24;background:#ffffff}.title{font-size:19px;font-weight:600}.group{font-weight:600}.quiet{opacity:.72;font-size:13px}
.box{fill:currentColor;fill-opacity:.05;stroke:currentColor;stroke-opacity:.45}.stack{fill:none;stroke:currentColor;stroke-opacity:.7;
stroke-width:1.5}.arrow{stroke:currentColor;stroke-opacity:.7;fill:none}.matrix{fill:#0b62a4;fill-opacity:.14;stroke:#0b62a4}
.cache{fill:#0f766e;fill-opacity:.14;stroke:#0f766e;stroke-dasharray:4 3}
@media(prefers-color-scheme:dark){svg{color:#e6eaf0;background:#14181d}.matrix{fill:#6cb6ff;stroke:#6cb6ff}.cache{fill:#4fd1b5;stroke:#4fd1b5}}
@media print{svg{color:#000;background:none}}"""


def draw(graph: BlockGraph, path: Path) -> None:
    """Write the picture to an .svg file. Raises OutputError."""
    if path.suffix != ".svg":
        raise OutputError(f"{path}: the block graph is drawn as SVG; use a name that ends in .svg")
    with atomic_output(path) as temporary:
        temporary.write_text(render(graph), "utf-8")


def render(graph: BlockGraph) -> str:
    """An `<svg>` document. All text is escaped."""
    page = _Page(WIDTH)
    name, blocks = printable(graph.file.name), sum(stack.blocks for stack in graph.stacks)
    parameters = number(graph.manifest.get("parameters"))
    facts = [named(graph.manifest, "family"), None if parameters is None else f"{count(parameters)} parameters"]
    facts += [named(graph.manifest, "recipe", "name"), f"{figures(graph.bytes / 1e6)} MB", f"{blocks} blocks", f"context {graph.context:,}"]
    page.text(MARGIN, shortened(name, 64), "title", 26)
    page.text(MARGIN, ", ".join(fact for fact in facts if fact), "quiet", 24)
    page.gap()
    for part in graph.before:
        page.part(part, MARGIN, WIDTH - MARGIN)
        page.arrow()
    for stack in graph.stacks:
        _stack(page, stack)
        page.arrow()
    for part in graph.after:
        page.part(part, MARGIN, WIDTH - MARGIN)
        page.arrow(last=part is graph.after[-1] and not graph.tied)
    if graph.tied:
        page.box(MARGIN, WIDTH - MARGIN, "matrix", ("lm_head", "", "the embedding's weights", ""))
    page.gap()
    page.text(MARGIN, "From top to bottom in the order that decode reads them; residual additions are left out.", "quiet", 20)
    alt = f"Block graph of {name}: {', '.join(fact for fact in facts if fact)}"
    return page.document(alt)


def _stack(page: "_Page", stack: Stack) -> None:
    """A frame around what repeats, or around one run."""
    begin, layer = page.y, stack.first
    repeated = stack.times > 1
    size = sum(run.count * run.kind.bytes for run in stack.runs)
    last = stack.first + stack.blocks - 1
    page.y += 26
    title = f"blocks {stack.first} to {last}" if last > stack.first else f"block {stack.first}"
    page.text_at(2 * MARGIN, title + (f"   {TIMES}{stack.times}" if repeated else ""), "group")
    page.text_at(WIDTH - 2 * MARGIN, f"{_megabytes(size)} each time" if repeated else _megabytes(size), "quiet", "end")
    page.y += 12
    for index, run in enumerate(stack.runs):
        if index:
            page.arrow()
        if len(stack.runs) > 1:
            page.y += 16
            page.text_at(2 * MARGIN, f"{run.count} equal blocks, one after the other" if run.count > 1 else "one block", "group")
            page.y += 10
        for title, parts in _groups(run.kind.parts):
            _group(page, title, parts, run.kind.caches if title == "attention" else ())
        layer += run.count
    page.y += 4
    page.frame(MARGIN, WIDTH - MARGIN, begin, page.y, "stack")


def _groups(parts: Iterable[Part]) -> list[tuple[str, list[Part]]]:
    """Parts by what they belong to: attention.qkv to attention, a norm to itself."""
    groups: list[tuple[str, list[Part]]] = []
    for part in parts:
        owner = part.name.partition(".")[0] if "." in part.name else ""
        if owner and groups and groups[-1][0] == owner:
            groups[-1][1].append(part)
        else:
            groups.append((owner, [part]))
    return groups


def _group(page: "_Page", title: str, parts: Sequence[Part], caches: Sequence[TensorSpec]) -> None:
    left, right = 2 * MARGIN, WIDTH - 2 * MARGIN
    if not title:
        for part in parts:
            page.part(part, left, right)
        page.y += 8
        return
    begin = page.y
    page.y += 22
    page.text_at(left + 14, title.replace("_", "-"), "group")
    page.y += 10
    for index, part in enumerate(parts):
        page.part(part, left + 10, right - 10, name=part.name.partition(".")[2])
        if index == 0 and caches:
            page.y += 6
            page.box(left + 10, right - 10, "cache", _cache_row(caches))
        page.y += 6
    page.frame(left, right, begin, page.y + 4, "box")
    page.y += 14


def _cache_row(caches: Sequence[TensorSpec]) -> tuple[str, str, str, str]:
    key = caches[0]
    size = sum(cache.dtype.itemsize * _product(cache.shape) for cache in caches)
    return "KV cache", f" {TIMES} ".join(map(str, key.shape[1:])), f"{key.dtype.name}, heads {TIMES} slots {TIMES} width", _megabytes(size)


class _Page:
    """Elements of the picture, from top to bottom; `y` is where the next one begins."""

    def __init__(self, width: int) -> None:
        self.width, self.y = width, 12.0
        self._elements: list[str] = []

    def gap(self) -> None:
        self.y += GAP

    def text(self, x: float, text: str, style: str, height: float) -> None:
        self.y += height
        self.text_at(x, text, style)

    def text_at(self, x: float, text: str, style: str, anchor: str = "start") -> None:
        """On the line at `y`."""
        self._elements.append(f'<text x="{x:g}" y="{self.y:g}" class="{style}" text-anchor="{anchor}">{escape(printable(text))}</text>')

    def part(self, part: Part, left: float, right: float, *, name: str | None = None) -> None:
        """A row for it, drawn as a matrix, or as a plain box where it is a vector."""
        shape = f" {TIMES} ".join(f"{size:,}" for size in part.shape)
        title = shortened(printable(name or part.name), 30) + (f"  {TIMES}{part.count}" if part.count > 1 else "")
        self.box(left, right, "matrix" if len(part.shape) > 1 else "box", (title, shape, part.scheme, _megabytes(part.bytes)))

    def box(self, left: float, right: float, style: str, texts: tuple[str, str, str, str]) -> None:
        self._elements.append(f'<rect x="{left:g}" y="{self.y:g}" width="{right - left:g}" height="{ROW}" rx="5" class="{style}"/>')
        self.y += ROW / 2 + 5
        for column, text in zip((left + 14, 250, 400), texts[:3], strict=True):
            self.text_at(column, text, "" if column < 100 else "quiet")
        self.text_at(right - 12, texts[3], "quiet", "end")
        self.y += ROW / 2 - 5

    def frame(self, left: float, right: float, top: float, bottom: float, style: str) -> None:
        """Behind what it holds."""
        self._elements.insert(
            0, f'<rect x="{left:g}" y="{top:g}" width="{right - left:g}" height="{bottom - top:g}" rx="9" class="{style}"/>'
        )

    def arrow(self, *, last: bool = False) -> None:
        """Down to what follows."""
        if last:
            return
        x, y = self.width / 2, self.y
        self._elements.append(f'<path d="M{x:g} {y + 2:g}v{GAP - 5:g}m-4 -5l4 5l4 -5" class="arrow"/>')
        self.y += GAP

    def document(self, alt: str) -> str:
        height = self.y + 14
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {height:g}" width="{self.width}" height="{height:g}" '
            f'role="img" aria-label="{escape(alt)}">\n<title>{escape(alt)}</title>\n<style>{_STYLE}</style>\n'
            + "\n".join(self._elements)
            + "\n</svg>\n"
        )


def _megabytes(size: float) -> str:
    return f"{figures(size / 1e6)} MB" if size >= 1e4 else f"{size:,.0f} B"


def _product(shape: Iterable[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
