"""The page in a real browser: nothing is fetched or complained of, a phone's width is enough, dark is dark, keys reach everything."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from flatlm.generative.reporting.block_graph import read_block_graph
from flatlm.generative.reporting.block_svg import draw
from flatlm.generative.reporting.report import report
from tests.generative.reporting.browser import Browser, browser
from tests.generative.reporting.conftest import write_comparison


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("screenshots")) as opened:
        yield opened


def requests(chromium: Browser) -> list[str]:
    """The addresses that the browser asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in chromium.driver.get_log("performance")]
    return [message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"]


def ground(picture: Path) -> float:
    """How light the page's corner is, from 0 to 1."""
    from matplotlib.image import imread

    return float(imread(picture)[2, 2, :3].mean())


@pytest.mark.parametrize("count", [1, 30])
def test_the_page_is_whole_by_itself(chromium, fill, tmp_path, count):
    folder = fill(count)
    write_comparison(folder)
    page = tmp_path / "report.html"
    report(folder, page)
    chromium.complaints(), requests(chromium)
    pictures = {}
    for width in (1280, 400):
        for dark in (False, True):
            name = f"report-{count}-{width}-{'dark' if dark else 'light'}"
            pictures[width, dark] = chromium.look(page.as_uri(), width=width, dark=dark, name=name)
            run = chromium.driver.execute_script
            assert run("return document.documentElement.scrollWidth") <= width, "no sideways scrolling of the page"
            wide, narrow = (
                run(f"return getComputedStyle(document.querySelector('figure .{kind}')).display") for kind in ("wide", "narrow")
            )
            assert (wide, narrow) == (("block", "none") if width == 1280 else ("none", "block"))
            ink = run("return getComputedStyle(document.querySelector('figure svg text')).fill")
            assert ink == ("rgb(230, 234, 240)" if dark else "rgb(27, 31, 36)"), "plots take the colours of the page"
            small = run(
                "return [...document.querySelectorAll('figure svg text')].filter(t => t.getBoundingClientRect().width)"
                ".map(t => parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a).filter(size => size && size < 9).length"
            )
            assert small == 0, "letters of a plot that nobody can read"
    headings = [element.text for element in chromium.driver.find_elements("css selector", "h2")]
    assert headings[0] == "Summary" and "The files" in headings and ("Quality against size" in headings) == (count > 1)
    assert chromium.complaints() == []
    assert set(requests(chromium)) <= {page.as_uri(), "data:,"}
    for width in (1280, 400):
        assert ground(pictures[width, False]) > 0.95 and ground(pictures[width, True]) < 0.2
    reach = "return [...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0 && e.getAttribute('aria-label'))"
    assert chromium.driver.execute_script(reach)
    opened = chromium.driver.execute_script("return [...document.querySelectorAll('#files ~ details')].map(e => e.open)")
    assert opened == ([True] if count == 1 else [False] * 30)


def test_even_a_page_that_was_tampered_with_runs_nothing(chromium, fill, tmp_path):
    """The policy is a second fence behind the escaping."""
    report(fill(1), tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text("utf-8")
    evil = "<script>document.title = 'run'</script><img src=x onerror=\"document.title='run'\"><img src='http://127.0.0.1:9/x'>"
    (tmp_path / "r.html").write_text(text.replace("<main>", f"<main>{evil}"), "utf-8")
    chromium.look((tmp_path / "r.html").as_uri(), width=800, name="tampered")
    assert chromium.driver.title == "FlatLM report"
    assert len([line for line in chromium.complaints() if "Content Security Policy" in line]) >= 3


def test_the_block_graph_is_drawn_light_and_dark(chromium, demo_bundle, tmp_path):
    draw(read_block_graph(demo_bundle), tmp_path / "graph.svg")
    pictures = [chromium.look((tmp_path / "graph.svg").as_uri(), width=800, dark=dark, name=f"graph-{dark}") for dark in (False, True)]
    assert ground(pictures[0]) > 0.95 and ground(pictures[1]) < 0.2
    assert chromium.complaints() == []
    overlaps = chromium.driver.execute_script(
        "const b = [...document.querySelectorAll('text')].map(t => t.getBoundingClientRect());"
        "return b.filter((x, i) => b.some((y, j) => i < j && x.left < y.right && y.left < x.right && x.top + 3 < y.bottom"
        " && y.top + 3 < x.bottom)).length"
    )
    assert overlaps == 0
