"""What a report says of a folder, and that nothing in the folder can make it say or do something else."""

import argparse
import importlib
import json
import math
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from flatlm.cli import main
from flatlm.errors import OutputError, RuntimeFileError
from flatlm.generative.reporting.collect import collect
from flatlm.generative.reporting.document import MISSING, Paragraph, Table
from flatlm.generative.reporting.html import render
from flatlm.generative.reporting.missing import HOW, SIDE_BY_SIDE, WITH_ADAPTER
from flatlm.generative.reporting.report import report
from flatlm.generative.reporting.sections import build
from flatlm.generative.reporting.svg import inline_svg
from flatlm.utilities.results import result_path, save_result
from tests.generative.reporting.conftest import DEMO, write_comparison, write_results

EVIL = """"><script>alert(1)</script><img src=x onerror=alert(2)>'&amp; $\\frac{1}{0}$ ${x} | `a` [l](javascript:x) \u202e"""


class Page(HTMLParser):
    """Elements by name, headings, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open and self._open[-1] == "h2":
            self.headings.append(data)


SECTIONS = ["Summary", "Quality against size", "Distance from the checkpoint", "Tasks", "Speed", "Side by side", "Error of each layer"]
SECTIONS += ["Verification", "The files", "Machines and noise"]


def test_everything_that_was_measured_is_told(fill, tmp_path):
    folder = fill(4)
    write_comparison(folder)
    written = report(folder, tmp_path / "report.html", plots=tmp_path)
    assert written.files == 4 and list(written.sections) == SECTIONS, "nothing is missing, so nothing is said to be"
    names = ["layers.png", "pareto.png", "perplexity.png", "ratios.png", "speed.png"]
    assert sorted(path.name for path in written.plots) == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written.plots)
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert page.headings == SECTIONS
    for said in ("model0-dynamic_int8.tflite", "family0 of 100 M", "0" * 64, "*.attention.*", "int8 per channel", "FULLY_CONNECTED"):
        assert said in page.text
    for said in (
        "KL ≤ 0.0100",
        "1.20 to 1.40",
        "it was busy",
        "decode at depth 64",
        "peers pick tokens themselves",
        "beyond noise",
        "97.00 %",
        "9 of 16",
        "0.7100 ± 0.030",
        "9,000 (8,730 to 9,270)",
    ):
        assert said in page.text, said
    tables = [dict(attributes) for tag, attributes in page.elements if tag == "table"]
    assert len(tables) == sum(tag == "caption" for tag, _ in page.elements) > 10
    scopes = [attributes.get("scope") for tag, attributes in page.elements if tag == "th"]
    assert set(scopes) == {"col", "row"}
    pictures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(pictures) == 2 * len(names) and all(picture["role"] == "img" and picture["aria-label"] for picture in pictures)
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    anchors = {attributes["href"] for tag, attributes in page.elements if tag == "a"}
    assert anchors <= {f"#{name}" for name in ids}


def test_what_was_not_measured_is_said(tmp_path):
    write_results(tmp_path / "full.tflite", 0, 1)
    write_results(tmp_path / "bare.tflite", 0, 0)
    for kind in ("evaluation", "benchmark", "layers", "inspection"):
        result_path(tmp_path / "bare.tflite", kind).unlink()
    document = build(collect(tmp_path))
    assert document.sections[-1].title == "Not measured"
    (table,) = document.sections[-1].blocks
    rows = {row[0].text: (row[1].text, row[2].text) for row in table.rows}
    assert rows["speed"] == ("bare.tflite", "flatlm benchmark FILE --save")
    assert rows["the file itself"][0] == "bare.tflite" and rows["per-layer error"][0] == "bare.tflite"
    assert rows["files and peers side by side"][0] == "all files" and "verification" not in rows
    summary = document.sections[0].blocks[0]
    assert isinstance(summary, Table)
    bare = summary.rows[0]
    assert bare[1].text == "bare.tflite" and [cell for cell in bare if cell is MISSING] == [MISSING] * 9
    assert render(document).count("not measured") >= 9


def test_a_column_that_no_file_has_is_named_below_instead(tmp_path):
    write_results(tmp_path / "a.tflite", 0, 1)
    result_path(tmp_path / "a.tflite", "benchmark").unlink()
    table, note, *rest = build(collect(tmp_path)).sections[0].blocks
    assert not rest and "decode, tokens/s" not in table.headers
    assert note.text == "Measured for none of them: prefill, tokens/s; decode, tokens/s; first token, ms; peak memory, MB."


def test_names_from_outside_are_only_text(tmp_path):
    write_results(tmp_path / "<script>alert(1)</script>.tflite".replace("/", "_"), 0, 1, label=EVIL)
    write_results(tmp_path / "plain.tflite", 0, 2, label="_" + EVIL)
    write_comparison(tmp_path, label=EVIL)
    report(tmp_path, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text("utf-8")
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "object", "form", "image", "foreignobject"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in page.text and "\u202e" not in text
    links = [value or "" for _, attributes in page.elements for name, value in attributes.items() if name.endswith("href")]
    assert all(link.startswith("#") or link == "data:," for link in links)
    report(tmp_path, tmp_path / "report.md")
    markdown = (tmp_path / "report.md").read_text("utf-8")
    assert "<script" not in markdown and "](javascript" not in markdown.replace("\\]", "")
    assert "\n\n##" in markdown and " | `a` " not in markdown


def test_markdown_names_the_plots_beside_it(fill, tmp_path):
    folder = fill(2)
    written = report(folder, tmp_path / "my report.md")
    text = (tmp_path / "my report.md").read_text("utf-8")
    assert "](<my%20report_pareto.png>)" in text
    assert {path.name for path in written.plots} == {f"my report_{name}.png" for name in ("pareto", "perplexity", "speed", "layers")}
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) > 20
    assert "| 1 | model0-dynamic\\_int8.tflite | family0 of 100 M | dynamic\\_int8 |" in text


def test_folders_that_cannot_be_reported(tmp_path, fill):
    with pytest.raises(RuntimeFileError, match=r"has no exported file and no result \(\*\.manifest\.json"):
        report(tmp_path, tmp_path / "r.html")
    with pytest.raises(RuntimeFileError, match="nowhere is not a folder"):
        report(tmp_path / "nowhere", tmp_path / "r.html")
    folder = fill(1)
    with pytest.raises(OutputError, match=r"r\.pdf: the suffix says the format; use \.html or \.md"):
        report(folder, tmp_path / "r.pdf")
    with pytest.raises(OutputError, match="is not a directory"):
        report(folder, tmp_path / "nowhere" / "r.html")
    file = next(folder.glob("*.manifest.json")).with_name("model0-fp16.tflite")
    result_path(file, "benchmark").write_text('[{"file": 1}]')
    with pytest.raises(RuntimeFileError, match=r"fp16\.tflite\.benchmark\.json is not a list of benchmark records"):
        report(folder, tmp_path / "r.html")
    result_path(file, "benchmark").unlink()
    result_path(file, "evaluation").write_text("[]")
    with pytest.raises(RuntimeFileError, match=r"evaluation\.json is not a JSON object: measure again"):
        report(folder, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_file_that_cannot_be_read_is_told_and_sinks_nothing(fill, tmp_path):
    folder = fill(1)
    (folder / "torn.tflite").write_bytes(b"TFL3" * 9)
    report(folder, tmp_path / "r.html")
    assert "The file could not be read: " in Page((tmp_path / "r.html").read_text()).text


@pytest.mark.parametrize("value", [-0.5, 0.0, 1e-300, 1e14, 1e308, math.inf, math.nan])
def test_plots_of_extreme_values_are_drawn(tmp_path, value):
    write_results(tmp_path / "a.tflite", 0, 1)
    write_results(tmp_path / "b.tflite", 0, 2)
    changes = {"evaluation": {"mean_kl": value}, "layers": {"layers": [[0, value, 0.1], [1, 0.1, value]]}}
    for kind, change in changes.items():
        path = result_path(tmp_path / "a.tflite", kind)
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    drawn = [plot for plot in build(collect(tmp_path)).plots() if plot.name in ("pareto", "layers")]
    assert len(drawn) == (2 if abs(value) < 1e15 else 0), "what no axis has room for is in the tables only"
    for plot in drawn:
        inline_svg(plot, narrow=True)


def test_a_real_file_is_inspected_and_its_layers_measured(demo_bundle, tmp_path, capsys):
    folder = demo_bundle.parent
    assert main(["report", str(folder), "-o", str(tmp_path / "r.html"), "--checkpoint", str(DEMO), "--tokens", "40", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["files"] == 1 and said["layers_measured"] == [str(result_path(demo_bundle, "layers"))]
    layers = json.loads(result_path(demo_bundle, "layers").read_text())
    assert layers["tokens"] == 40 and len(layers["layers"]) == 6
    assert all(1e-3 < error < 0.05 for row in layers["layers"] for error in row[1:]), "int8 weights"
    text = Page((tmp_path / "r.html").read_text()).text
    assert "DYNAMIC_UPDATE_SLICE" in text and "llama of 1.31 M" in text and "demo.litertlm" in text
    assert main(["report", str(folder), "-o", str(tmp_path / "r.html"), "--checkpoint", str(tmp_path)]) == 2
    assert main(["report", str(folder), "-o", str(tmp_path / "r.html")]) == 0
    assert "Error of each layer" in capsys.readouterr().out


def test_without_matplotlib_the_way_out_is_said(fill, tmp_path, monkeypatch):
    import flatlm.generative.reporting.svg as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"needs matplotlib: pip install 'flatlm\[plots\]'"):
        report(fill(1), tmp_path / "r.html")


def test_importing_it_loads_nothing_heavy():
    code = "import sys, flatlm.generative.reporting.html, flatlm.generative.reporting.plots as p; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_report_is_replaced_whole(fill, tmp_path):
    output = Path(tmp_path / "r.html")
    output.write_text("old")
    report(fill(1), output)
    assert output.read_text().startswith("<!DOCTYPE html>") and not list(tmp_path.glob(".r*"))


@pytest.mark.parametrize("hint", [how for how in (*HOW.values(), SIDE_BY_SIDE, WITH_ADAPTER) if how.startswith("flatlm ")])
def test_hints_are_commands_that_save(hint):
    _, verb, *arguments = hint.partition(", without")[0].split(" ")
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(f"flatlm.commands.{verb}").add_arguments(parser)
    given = parser.parse_args(arguments)
    assert verb in ("export", "report") or given.save


def test_the_summary_is_of_one_target_and_an_empty_context(tmp_path):
    def records(name: str, *changes: dict) -> None:
        write_results(tmp_path / name, 0, 1)
        (record,) = json.loads(result_path(tmp_path / name, "benchmark").read_text())
        save_result(tmp_path / name, "benchmark", [record | change for change in changes])

    speeds = {"prefill_tokens_per_second": None, "decode_tokens_per_second": {"median": 7.5, "minimum": 7, "maximum": 8, "runs": 3}}
    deep, turned = [{"depth": 512, **speeds}], [{"depth": 512, **speeds}, {"depth": 0, **speeds}]
    turned[0] = turned[0] | {"decode_tokens_per_second": {"median": 3.5, "minimum": 3, "maximum": 4, "runs": 3}}
    records("a.tflite", {"target": "ssh://pi"}, {"target": "local", "depths": turned})
    records("b.tflite", {"target": "local", "depths": turned})
    records("c.tflite", {"target": "local", "depths": deep}, {"target": "adb", "depths": deep})
    table, *rest = build(collect(tmp_path)).sections[0].blocks
    column = table.headers.index("decode, tokens/s")
    assert [row[column].text for row in table.rows] == ["7.50", "7.50", MISSING.text]
    said = "Speeds are medians on local, with nothing in the context before the prompt; those on other targets are below."
    assert rest[-1] == Paragraph(said)
    for name in ("b.tflite", "c.tflite"):
        records(name, {"target": "local", "depths": deep})
    table, *rest = build(collect(tmp_path)).sections[0].blocks
    assert "on ssh://pi, with" in rest[-1].text, "the first of equals"
    records("a.tflite", {"depths": deep})
    table, note, *rest = build(collect(tmp_path)).sections[0].blocks
    assert not rest and "decode, tokens/s" not in table.headers and "Speeds are" not in note.text


def test_the_weight_cache_is_told_where_it_is_off(tmp_path):
    write_results(tmp_path / "a.tflite", 0, 1)
    (record,) = json.loads(result_path(tmp_path / "a.tflite", "benchmark").read_text())
    save_result(tmp_path / "a.tflite", "benchmark", [record, record | {"weight_cache": False}])
    (speed,) = [section for section in build(collect(tmp_path)).sections if section.title == "Speed"]
    plot, start, *_, folded = speed.blocks
    assert [row[2].text for row in start.rows] == ["2", "2, no weight cache"]
    assert [row[2].text for row in folded.blocks[0].rows] == ["2"] * 3 + ["2, no weight cache"] * 3
    assert plot.alt.endswith("dynamic_int8, 2 threads, dynamic_int8, 2 threads, no weight cache.")
    inline_svg(plot, narrow=False)
