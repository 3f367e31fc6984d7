"""Labels lie on nothing, fronts are fronts, and one drawing is the page's own."""

import random
from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatlm.generative.reporting import plots as module
from flatlm.generative.reporting.labels import spread, within
from flatlm.generative.reporting.plots import Line, Point, front, lines_plot, quality_plot
from flatlm.generative.reporting.style_sheet import STYLE_SHEET
from flatlm.generative.reporting.svg import DARK_SERIES, SERIES, inline_svg, write_png


def points(count: int, seed: int = 0, groups: int = 1) -> list[Point]:
    chooser = random.Random(seed)
    return [Point(i, f"recipe_{i}", f"{i % groups}", chooser.uniform(1, 9), 10 ** chooser.uniform(-5, -1)) for i in range(count)]


@pytest.mark.parametrize(("count", "narrow"), [(3, True), (10, False), (30, False), (30, True)])
@pytest.mark.parametrize("seed", [1, 2])
def test_labels_of_points_do_not_overlap(monkeypatch, count, narrow, seed):
    found = []
    original = module.label_points
    monkeypatch.setattr(module, "label_points", lambda *args, **kwargs: found.extend(original(*args, **kwargs)))
    inline_svg(quality_plot("q", "Q", points(count, seed), label="KL", log=True), narrow=narrow)
    assert len(found) == count
    for a, b in combinations(found, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_the_front_is_of_each_group_by_itself():
    given_points = [Point(1, "a", "x", 1, 5), Point(2, "b", "x", 2, 3), Point(3, "c", "x", 3, 4), Point(4, "d", "y", 9, 9)]
    assert [point.label for point in front(given_points)] == ["a", "b", "d"]
    twins = [Point(1, "a", "x", 1, 1), Point(2, "b", "x", 1, 1)]
    assert front(twins) == twins, "neither is better"


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20), st.floats(0.5, 8))
def test_spread_places_keep_their_order_and_distance(places, least):
    found = spread(places, least)
    order = sorted(range(len(places)), key=lambda i: places[i])
    assert all(found[b] - found[a] >= least - 1e-9 for a, b in pairwise(order))
    room = max(100, least * len(places))
    inside = within(found, 0, room, least)
    assert all(inside[b] - inside[a] >= least - 1e-9 for a, b in pairwise(order))
    assert min(inside) >= 0 and max(inside) <= room


def test_places_far_apart_stay():
    assert spread([1.0, 50.0, 20.0], 5) == [1.0, 50.0, 20.0]


def test_a_drawing_has_the_page_s_colours_fonts_and_its_own_ids():
    plot = quality_plot("pareto", "KL", points(12), label="KL", log=True)
    wide, narrow = inline_svg(plot, narrow=False), inline_svg(plot, narrow=True)
    root = ElementTree.fromstring(wide)
    assert "var(--series-0)" in wide and "var(--ink)" in wide and "#0a0b" not in wide and "#010203" not in wide
    texts = [element for element in root.iter() if element.tag.endswith("text")]
    assert texts and "font-family" not in wide and "font: " not in wide
    assert "width" not in root.attrib and root.get("aria-label", "").startswith("KL: 12 files; on the front")
    ids = [{element.get("id") for element in ElementTree.fromstring(svg).iter() if element.get("id")} for svg in (wide, narrow)]
    assert not ids[0] & ids[1] and all(name.startswith("pareto-") for name in ids[0] | ids[1])
    assert inline_svg(plot, narrow=False) == wide, "the same each time"


def test_markup_in_labels_stays_text():
    lines = [Line(1, r"$\frac{1}{2}$ <b>&", ((0.0, 1.0), (1.0, 2.0)))]
    svg = inline_svg(lines_plot("l", "L", [("y", lines)], xlabel="x", caption=""), narrow=False)
    assert r"1 $\frac{1}{2}$ &lt;b&gt;&amp;" in svg


def test_png_is_drawn_on_white(tmp_path):
    from matplotlib.image import imread

    write_png(quality_plot("q", "Q", points(3), label="KL", log=True), tmp_path / "q.png")
    picture = imread(tmp_path / "q.png")
    assert picture.shape[1] > 1000 and tuple(picture[0, 0][:3]) == (1, 1, 1)


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_read_on_their_ground():
    assert len(SERIES) == len(DARK_SERIES)
    assert all(contrast(color, "#ffffff") >= 4.5 for color in SERIES)
    assert all(contrast(color, "#14181d") >= 4.5 for color in DARK_SERIES)
    assert "--paper:#ffffff" in STYLE_SHEET and "--paper:#14181d" in STYLE_SHEET
    light, dark = ("#5b6470", "#0b5cad", "#a40e26", "#116329"), ("#9aa5b1", "#7cc0ff", "#ff9492", "#6fd28a")
    for ink, paper in [(ink, paper) for inks, paper in ((light, "#f5f7f9"), (dark, "#1d232a")) for ink in inks]:
        assert ink in STYLE_SHEET and contrast(ink, paper) >= 4.5, ink
