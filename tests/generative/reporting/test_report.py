"""What a report says of a folder, and that nothing in the folder can make it say or do something else."""

import argparse
import copy
import importlib
import json
import math
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from flatlm import __version__
from flatlm.cli import main
from flatlm.convert.bundle import read_bundle
from flatlm.errors import OutputError, RuntimeFileError
from flatlm.generative.reporting.collect import collect
from flatlm.generative.reporting.document import MISSING, Paragraph, Table
from flatlm.generative.reporting.html import render
from flatlm.generative.reporting.missing import HOW, SIDE_BY_SIDE, WITH_ADAPTER
from flatlm.generative.reporting.report import report
from flatlm.generative.reporting.sections import build
from flatlm.generative.reporting.svg import inline_svg
from flatlm.utilities.digests import file_digest
from flatlm.utilities.results import FILE_KEY, result_path, save_evaluation, save_result
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


def test_values_of_any_type_are_borne(tmp_path):
    """Every leaf and branch of the results in turn is something that it should not be."""
    values = [None, "", "x" * 300, [], [1], {}, {"a": 1}, True, -1, 0, 1e308, math.inf, -math.inf, math.nan, 10**30]
    write_results(tmp_path / "a.tflite", 0, 1)
    write_results(tmp_path / "b.tflite", 0, 2)
    write_comparison(tmp_path)
    files = [path for path in sorted(tmp_path.glob("*.json")) if ".b." not in path.name and not path.name.startswith("b.")]
    chooser = random.Random(0)
    for path in files:
        original = json.loads(path.read_text())
        for place in places(original):
            value = copy.deepcopy(original)
            target = value
            for key in place[:-1]:
                target = target[key]
            target[place[-1]] = chooser.choice(values)
            path.write_text(json.dumps(value))
            try:
                document = build(collect(tmp_path))
                if chooser.random() < 0.02:
                    inline_svg(chooser.choice(document.plots()), narrow=True)
            except RuntimeFileError as error:
                assert path.name in str(error) or "comparison" in str(error)
        path.write_text(json.dumps(original))


def places(value: object, at: tuple = ()) -> list[tuple]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, child in children for found in ((*at, key), *places(child, (*at, key)))]


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


def test_layers_of_another_checkpoint_are_not_measured(fill, tmp_path, capsys):
    assert main(["report", str(fill(1)), "-o", str(tmp_path / "r.html"), "--checkpoint", str(DEMO)]) == 2
    assert "has no file that was exported from" in capsys.readouterr().err


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


def test_what_was_measured_of_an_earlier_content_is_left_out_and_told(demo_bundle, tmp_path):
    """As an export to the name of an earlier file leaves it."""
    file = tmp_path / "again.litertlm"
    write_results(file, 0, 1)
    save_evaluation(write_file(file, b"what the name stood for before"), json.loads(result_path(file, "evaluation").read_text()))
    file.write_bytes(demo_bundle.read_bytes())
    size = file.stat().st_size
    path = result_path(file, "benchmark")
    (old,) = json.loads(path.read_text())
    path.write_text(json.dumps([old, old | {"target": "ssh://pi", "file_bytes": size}]))
    (subject,) = collect(tmp_path).subjects
    assert subject.outdated == ("inspection", "evaluation", "per-layer error", "speed on local")
    assert subject.bytes == size and subject.problem is None, "it was inspected anew"
    assert not subject.evaluation and not subject.layers
    assert [record.target for record in subject.benchmarks] == ["ssh://pi"]
    section = build(collect(tmp_path)).sections[-1]
    said = "again.litertlm: measured of an earlier content, left out: inspection; evaluation; per-layer error; speed on local."
    assert section.title == "Not measured" and section.blocks[-1] == Paragraph(said)


def test_what_was_measured_of_this_content_stays(demo_bundle, tmp_path):
    """So does what does not tell which content it is of."""
    file = tmp_path / "same.litertlm"
    write_results(file, 0, 1)
    size = write_file(file, demo_bundle.read_bytes()).stat().st_size
    for kind, change in {"inspection": {"bytes": size}, "benchmark": {"file_bytes": size}}.items():
        value = json.loads(result_path(file, kind).read_text())
        save_result(file, kind, [value[0] | change] if kind == "benchmark" else value | change)
    for digest in ({}, {FILE_KEY: file_digest(file)}):
        for kind in ("evaluation", "layers"):
            save_result(file, kind, json.loads(result_path(file, kind).read_text()) | digest)
        (subject,) = collect(tmp_path).subjects
        assert not subject.outdated and subject.benchmarks and subject.layer_rows() and subject.measured("mean_kl") is not None
    save_result(file, "layers", json.loads(result_path(file, "layers").read_text()) | {FILE_KEY: "0" * 64})
    (subject,) = collect(tmp_path).subjects
    assert subject.outdated == ("per-layer error",) and not subject.layers and subject.evaluation


def write_file(file: Path, content: bytes) -> Path:
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("depths", [[], [{"depth": "x", "prefill_tokens_per_second": None, "decode_tokens_per_second": None}]])
def test_a_benchmark_without_a_depth_is_one_error(fill, depths):
    folder = fill(1)
    path = result_path(folder / "model0-fp16.tflite", "benchmark")
    path.write_text(json.dumps([json.loads(path.read_text())[0] | {"depths": depths}]))
    with pytest.raises(RuntimeFileError, match=r"fp16\.tflite\.benchmark\.json is not a list of benchmark records \(ValueError"):
        build(collect(folder))


def test_one_file_does_not_stop_the_layers_of_others(demo_bundle, tmp_path, capsys):
    """One with an adapter merged into it, one of another tokenizer, another that was measured before, and a whole one."""
    content = demo_bundle.read_bytes()
    version = f'"flatlm":"{__version__}",'.encode()
    assert version in content
    bundle = read_bundle(demo_bundle)
    model = content[bundle.model_offset : bundle.model_offset + bundle.model_size]
    adapted = content.replace(version, b'"lora":{},'.ljust(len(version)))
    broken = re.sub(rb'"tokenizer":"..', b'"tokenizer":"no', model)
    write_file(tmp_path / "adapted.litertlm", adapted)
    write_file(tmp_path / "broken.tflite", broken)
    measured = write_file(tmp_path / "measured.tflite", broken)
    save_result(measured, "layers", {"tokens": 9, "layers": [[0, 0.25, 0.5]], "logits_error": 0.1})
    arguments = ["report", str(tmp_path), "-o", str(tmp_path / "r.html"), "--checkpoint", str(DEMO), "--tokens", "8", "--json"]
    assert main(arguments) == 2, "as nothing could be measured"
    assert "broken.tflite" in capsys.readouterr().err
    whole = write_file(tmp_path / "whole.litertlm", content)
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["layers_measured"] == [str(result_path(whole, "layers"))]
    assert not result_path(tmp_path / "adapted.litertlm", "layers").exists()
    findings = collect(tmp_path)
    assert [subject.name.partition(".")[0] for subject in findings.subjects if subject.layer_rows()] == ["measured", "whole"]
    table, *told = build(findings).sections[-1].blocks
    rows = {row[0].text: (row[1].text, row[2].text) for row in table.rows}
    assert rows["per-layer error"][0] == "broken.tflite"
    adapter = "flatlm evaluate FILE --text TEXT --checkpoint CHECKPOINT --lora ADAPTER --layers --save"
    assert rows["per-layer error, with an adapter"] == ("adapted.litertlm", adapter)
    assert [paragraph.text.partition(": ")[0] for paragraph in told] == ["broken.tflite", "measured.tflite"]
    assert all("the error of each layer could not be measured: " in paragraph.text for paragraph in told)
    for name in ("broken.tflite", "measured.tflite", "whole.litertlm"):
        (tmp_path / name).unlink()
    assert main(arguments) == 2
    assert "have an adapter merged into them: use flatlm evaluate" in capsys.readouterr().err


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
