"""Labels of a plot that lie on nothing: neither on one another nor on points."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""
_DIRECTIONS = tuple((math.cos(angle), math.sin(angle)) for angle in (math.pi / 4 * step for step in (0, 4, 2, 6, 1, 7, 3, 5)))
_DISTANCES = (6, 12, 20, 30, 42, 56, 72)
_OUTSIDE, _ON_LABEL, _ON_POINT, _ON_LINE = 100.0, 30.0, 10.0, 3.0


def label_points(
    figure: Any,
    axes: Any,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    *,
    lines: Sequence[Sequence[tuple[float, float]]] = (),
    color: str,
    size: float,
) -> list[Box]:
    """Write a text beside each point, off the `lines`, all in data coordinates; far ones get a line to it. Returns where the texts lie.

    Call it when all else is drawn: what changes the axes afterwards moves the points.
    """
    renderer, scale = _prepared(figure)
    spots = [tuple(axes.transData.transform(point)) for point in points]
    inside = _extent(axes)
    along = [_around(spot, 2 * scale) for line in lines for spot in _walk([axes.transData.transform(p) for p in line], 6 * scale)]
    placed: list[Box] = []
    crowd = {i: sum(math.dist(spots[i], other) < 60 * scale for other in spots) for i in range(len(spots))}
    boxes: dict[int, Box] = {}
    for index in sorted(crowd, key=lambda i: -crowd[i]):
        x, y = spots[index]
        width, height = _measure(renderer, texts[index], size)
        best: tuple[float, Box, int] | None = None
        for distance in _DISTANCES:
            for dx, dy in _DIRECTIONS:
                centre_x = x + dx * (distance * scale + width / 2)
                centre_y = y + dy * (distance * scale + height / 2)
                box = (centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
                cost = distance / 100 + _ON_LABEL * sum(_overlap(box, other) for other in placed)
                cost += _ON_POINT * sum(_overlap(box, _around(spot, 5 * scale)) for spot in spots)
                cost += _ON_LINE * any(_overlap(box, spot) for spot in along)
                cost += 0 if _contains(inside, box) else _OUTSIDE
                if best is None or cost < best[0]:
                    best = (cost, box, distance)
            if best is not None and best[0] < 1:
                break
        assert best is not None
        _, box, distance = best
        placed.append(box)
        boxes[index] = box
        offset = ((box[0] + box[2]) / 2 - x) / scale, ((box[1] + box[3]) / 2 - y) / scale
        side = 0 if box[0] > x else 1 if box[2] < x else 0.5, 0 if box[1] > y else 1 if box[3] < y else 0.5
        arrow = _leader(color, side) if distance > _DISTANCES[1] else None
        axes.annotate(
            texts[index],
            points[index],
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            color=color,
            fontsize=size,
            arrowprops=arrow,
        ).set_in_layout(False)
    return [boxes[index] for index in range(len(texts))]


def label_line_ends(figure: Any, axes: Any, ends: Sequence[tuple[float, float]], texts: Sequence[tuple[str, str]], *, size: float) -> None:
    """Write (text, colour) to the right of each line's last point, one above the other in the order of the ends."""
    renderer, scale = _prepared(figure)
    spots = [axes.transData.transform(end) for end in ends]
    right = axes.get_window_extent().x1 + 8 * scale
    _, bottom, _, top = _extent(axes)
    least = size * 1.25 * scale
    heights = within(spread([float(spot[1]) for spot in spots], least), bottom + least / 2, top - least / 2, least)
    for end, spot, height, (text, color) in zip(ends, spots, heights, texts, strict=True):
        offset = (right - spot[0]) / scale, (height - spot[1]) / scale
        line = _leader(color, (-3 * scale / _measure(renderer, text, size)[0], 0.5))
        axes.annotate(
            text, end, xytext=offset, textcoords="offset points", ha="left", va="center", color=color, fontsize=size, arrowprops=line
        ).set_in_layout(False)


def spread(places: Sequence[float], least: float) -> list[float]:
    """The places in their order, moved as little as makes neighbours at least so far apart: groups that collide share a centre."""
    groups: list[list[int]] = []
    for index in sorted(range(len(places)), key=lambda i: places[i]):
        groups.append([index])
        while len(groups) > 1 and _low(groups[-1], places, least) < _low(groups[-2], places, least) + len(groups[-2]) * least:
            last = groups.pop()
            groups[-1] += last
    out = [0.0] * len(places)
    for group in groups:
        low = _low(group, places, least)
        for step, index in enumerate(group):
            out[index] = low + step * least
    return out


def within(places: Sequence[float], low: float, high: float, least: float) -> list[float]:
    """The same order and distances, pushed in from the high end, then from the low one."""
    out = list(places)
    order = sorted(range(len(out)), key=lambda i: out[i])
    for step, index in enumerate(reversed(order)):
        out[index] = min(out[index], high - step * least)
    for step, index in enumerate(order):
        out[index] = max(out[index], low + step * least)
    return out


def _low(group: Sequence[int], places: Sequence[float], least: float) -> float:
    return sum(places[index] for index in group) / len(group) - (len(group) - 1) * least / 2


def text_width(figure: Any, text: str, size: float) -> float:
    """In inches."""
    renderer, _ = _prepared(figure, draw=False)
    return _measure(renderer, text, size)[0] / float(figure.dpi)


def _leader(color: str, side: tuple[float, float]) -> dict[str, Any]:
    """A line from that side of a text. (With matplotlib's defaults it would be cut at both ends, which takes longer than all the rest.)"""
    return {"arrowstyle": "-", "color": color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0, "patchA": None, "relpos": side}


def _prepared(figure: Any, *, draw: bool = True) -> tuple[Any, float]:
    """A renderer, and pixels in a point; with `draw` the figure's layout is settled, once and for all."""
    if draw and figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine(None)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    return FigureCanvasAgg(figure).get_renderer(), float(figure.dpi) / 72


def _measure(renderer: Any, text: str, size: float) -> tuple[float, float]:
    from matplotlib.font_manager import FontProperties

    width, height, _ = renderer.get_text_width_height_descent(text, FontProperties(size=size), False)
    return width + 4, height + 3


def _extent(axes: Any) -> Box:
    box = axes.get_window_extent()
    return box.x0, box.y0, box.x1, box.y1


def _walk(corners: Sequence[Any], step: float) -> list[tuple[float, float]]:
    """Spots along straight lines from corner to corner."""
    spots = []
    for (x0, y0), (x1, y1) in pairwise(corners):
        count = 1 + int(math.hypot(x1 - x0, y1 - y0) / step)
        spots += [(x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count) for i in range(count + 1)]
    return spots


def _around(spot: Sequence[float], radius: float) -> Box:
    return spot[0] - radius, spot[1] - radius, spot[0] + radius, spot[1] + radius


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _contains(outer: Box, inner: Box) -> bool:
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[2] <= outer[2] and inner[3] <= outer[3]
