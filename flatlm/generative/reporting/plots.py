"""The plots of a report, each drawn on a matplotlib figure that it is given, wide or narrow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flatlm.generative.reporting.document import Plot, Style
from flatlm.generative.reporting.labels import label_line_ends, label_points, text_width

NAMED = 10
"""The most points or lines that are called by name; of more, by their number in the summary."""
LOG_FROM = 8
"""Between the largest file and the smallest: from there on sizes are on a logarithmic scale."""
CLOSE = 1000
"""Between the ends of a logarithmic axis: below that, 2 and 5 are marked beside powers of ten."""
LEAST_KL = 1e-6
"""What is below is drawn there: it is rounding of the arithmetic, and would squeeze the rest together."""


@dataclass(frozen=True)
class Point:
    """`group`: points of one are compared, so the front is theirs; what is smaller in both coordinates is better."""

    number: int
    label: str
    group: str
    x: float
    y: float


@dataclass(frozen=True)
class Line:
    """Of one file: (x, y) in the order of x; with `spread`, (least, most) of each y."""

    number: int
    label: str
    points: tuple[tuple[float, float], ...]
    spread: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Bar:
    """A value with its range."""

    label: str
    value: float
    low: float
    high: float


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other of their group is at least as good as in both coordinates, and better in one; by x."""
    best = [p for p in points if not any(o.group == p.group and o.x <= p.x and o.y <= p.y and (o.x, o.y) != (p.x, p.y) for o in points)]
    return sorted(best, key=lambda point: (point.group, point.x))


def quality_plot(name: str, title: str, points: Sequence[Point], *, label: str, log: bool) -> Plot:
    """Quality, of which less is better, against megabytes."""
    best = front(points)
    alt = f"{title}: {len(points)} files; on the front, from the smallest: {', '.join(point.label for point in best)}."

    def draw(figure: Any, style: Style) -> None:
        axes = figure.subplots()
        _frame(axes, style)
        groups = list(dict.fromkeys(point.group for point in points))
        floor = LEAST_KL if log else float("-inf")
        steps: list[list[tuple[float, float]]] = []
        for group, color in zip(groups, _colors(style, len(groups)), strict=True):
            line = [point for point in best if point.group == group]
            rest = [point for point in points if point.group == group and point not in line]
            xs, ys = [p.x for p in line], [max(p.y, floor) for p in line]
            corners = [corner for i, (x, y) in enumerate(zip(xs, ys, strict=True)) for corner in ([(x, ys[i - 1])] if i else []) + [(x, y)]]
            steps.append(corners)
            axes.plot(*zip(*corners, strict=True), color=color, linewidth=1.2, alpha=0.6)
            axes.plot(xs, ys, "o", color=color, markersize=7, linestyle="none")
            axes.plot(
                [p.x for p in rest], [max(p.y, floor) for p in rest], "o", color=color, markersize=6, fillstyle="none", linestyle="none"
            )
        axes.set(xlabel="file, MB", ylabel=label, yscale="log" if log else "linear")
        axes.margins(0.14 if style.narrow else 0.1, 0.16)
        if max(p.x for p in points) > LOG_FROM * min(p.x for p in points) > 0:
            axes.set_xscale("log")
        texts = [_called(point.number, point.label, len(points), style) for point in points]
        _plain_ticks(axes)
        where = [(p.x, max(p.y, floor)) for p in points]
        label_points(figure, axes, where, texts, lines=steps, color=style.foreground, size=8 if style.narrow else 9)

    caption = "Filled: on the front; no other file of the same model is both smaller and better. Less is better."
    caption += f" KL below {tick(LEAST_KL)} is drawn there." if log and any(point.y < LEAST_KL for point in points) else ""
    return Plot(name, title, alt, caption, draw)


def lines_plot(
    name: str, title: str, panels: Sequence[tuple[str, Sequence[Line]]], *, xlabel: str, caption: str, log: bool = False
) -> Plot:
    """Panels one below the other, each (label of y, lines); all with the same x."""
    shown = [(label, lines) for label, lines in panels if lines]
    files = list(dict.fromkeys(line.number for _, lines in shown for line in lines))
    names = list(dict.fromkeys(line.label for _, lines in shown for line in lines))
    alt = f"{title}: {', '.join(label for label, _ in shown)} against {xlabel} of {', '.join(names)}."

    def draw(figure: Any, style: Style) -> None:
        labelled = [line for _, lines in shown for line in lines]
        most = max(len(lines) for _, lines in shown)
        texts = {
            (line.number, line.label): f"{line.number}" if style.narrow else _called(line.number, line.label, most, style)
            for line in labelled
        }
        size = 8 if style.narrow else 9
        room = max(text_width(figure, text, size) for text in texts.values()) + 0.25
        height = max(2.3, most * size * 1.3 / 72 + 0.7)
        figure.set_figheight(height * len(shown))
        figure.get_layout_engine().set(rect=(0, 0, 1 - room / figure.get_figwidth(), 1))
        colors = dict(zip(files, _colors(style, len(files)), strict=True))
        panels_axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (label, lines) in zip(panels_axes, shown, strict=True):
            _frame(axes, style)
            for line in lines:
                xs, ys = zip(*line.points, strict=True)
                drawn = [max(y, LEAST_KL) for y in ys] if log else ys
                axes.plot(xs, drawn, "o-", color=colors[line.number], markersize=3, linewidth=1.3)
                for x, (low, high) in zip(xs, line.spread, strict=False):
                    axes.plot([x, x], [low, high], color=colors[line.number], linewidth=1, alpha=0.5)
            axes.set(ylabel=label, yscale="log" if log else "linear")
            if not log:
                axes.set_ylim(bottom=0)
            _plain_ticks(axes)
        panels_axes[-1].set_xlabel(xlabel)
        if all(float(x).is_integer() for _, lines in shown for line in lines for x, _ in line.points):
            from matplotlib.ticker import MaxNLocator

            panels_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5 if style.narrow else 9))
        for axes, (_, lines) in zip(panels_axes, shown, strict=True):
            where = [(line.points[-1][0], max(line.points[-1][1], LEAST_KL) if log else line.points[-1][1]) for line in lines]
            named = [(texts[line.number, line.label], colors[line.number]) for line in lines]
            label_line_ends(figure, axes, where, named, size=size)

    return Plot(name, title, alt, caption, draw)


def bars_plot(name: str, title: str, panels: Sequence[tuple[str, Sequence[Bar]]], *, caption: str, reference: float | None = None) -> Plot:
    """Panels one below the other, each (label of x, bars): a dot with its range a bar; `reference` is marked by a line."""
    alt = f"{title}: " + "; ".join(f"{label}: {', '.join(f'{bar.label} {bar.value:.4g}' for bar in bars)}" for label, bars in panels) + "."

    def draw(figure: Any, style: Style) -> None:
        size = 8 if style.narrow else 9
        heights = [len(bars) * size * 1.9 / 72 + 0.75 for _, bars in panels]
        figure.set_figheight(sum(heights))
        all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (label, bars) in zip(all_axes, panels, strict=True):
            _frame(axes, style)
            places = list(range(len(bars)))[::-1]
            for place, bar in zip(places, bars, strict=True):
                axes.plot([bar.low, bar.high], [place, place], color=style.series[0], linewidth=2, alpha=0.5, solid_capstyle="butt")
                axes.plot([bar.value], [place], "o", color=style.series[0], markersize=5)
            texts = [_cut(figure, bar.label, size, figure.get_figwidth() * 0.4) for bar in bars]
            axes.set_yticks(places, texts, fontsize=size)
            axes.set(xlabel=label, ylim=(-0.6, len(bars) - 0.4))
            _plain_ticks(axes, only_x=True)
            if reference is None:
                axes.set_xlim(left=0)
            else:
                axes.axvline(reference, color=style.muted, linewidth=1)

    return Plot(name, title, alt, caption, draw)


def _frame(axes: Any, style: Style) -> None:
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(style.muted)
    axes.tick_params(which="both", colors=style.muted, labelcolor=style.foreground, labelsize=8 if style.narrow else 9)
    axes.xaxis.label.set(color=style.foreground, fontsize=9 if style.narrow else 10)
    axes.yaxis.label.set(color=style.foreground, fontsize=9 if style.narrow else 10)
    axes.grid(color=style.muted, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_facecolor("none")


def tick(value: float) -> str:
    return f"{value:,.6g}".replace("e-0", "e-")


def _plain_ticks(axes: Any, *, only_x: bool = False) -> None:
    """Numbers without markup, since text from outside must not be read as such, and in groups of three."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis,) if only_x else (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        if axis.get_scale() == "log" and high < CLOSE * low:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        axis.set_minor_formatter(NullFormatter())


def _colors(style: Style, count: int) -> list[str]:
    return [style.series[index % len(style.series)] for index in range(count)]


def _called(index: int, label: str, among: int, style: Style) -> str:
    return f"{index}" if among > (3 if style.narrow else NAMED) else f"{index} {label}"


def _cut(figure: Any, text: str, size: float, room: float) -> str:
    while len(text) > 4 and text_width(figure, text, size) > room:
        text = text[:-2].rstrip("…") + "…"
    return text
