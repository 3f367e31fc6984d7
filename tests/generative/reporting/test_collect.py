"""What is read of a folder: results of any form, and those of an earlier content of a file."""

import copy
import json
import math
import random

import pytest

from flatlm.errors import RuntimeFileError
from flatlm.generative.reporting.collect import collect
from flatlm.generative.reporting.document import Paragraph
from flatlm.generative.reporting.sections import build
from flatlm.generative.reporting.svg import inline_svg
from flatlm.utilities.digests import file_digest
from flatlm.utilities.results import FILE_KEY, result_path, save_evaluation, save_result
from tests.generative.reporting.conftest import write_comparison, write_file, write_results


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


@pytest.mark.parametrize("depths", [[], [{"depth": "x", "prefill_tokens_per_second": None, "decode_tokens_per_second": None}]])
def test_a_benchmark_without_a_depth_is_one_error(fill, depths):
    folder = fill(1)
    path = result_path(folder / "model0-fp16.tflite", "benchmark")
    path.write_text(json.dumps([json.loads(path.read_text())[0] | {"depths": depths}]))
    with pytest.raises(RuntimeFileError, match=r"fp16\.tflite\.benchmark\.json is not a list of benchmark records \(ValueError"):
        build(collect(folder))
