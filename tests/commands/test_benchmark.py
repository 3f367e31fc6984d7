"""flatlm benchmark: what it prints, keeps and refuses."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from flatlm.cli import main
from flatlm.commands.benchmark import describe, kept, save
from flatlm.errors import RuntimeFileError
from flatlm.generative.benchmarking import measure
from flatlm.generative.benchmarking.record import BenchmarkRecord
from flatlm.utilities.results import read_results
from tests.generative.benchmarking.test_record import RECORD
from tests.generative.toy_model import Toy, export_toy


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_toy(tmp_path_factory.mktemp("toy") / "toy.tflite", Toy(seed=0, prefill_logits=False).eval(), (4, 16))


@pytest.fixture(autouse=True)
def no_more_runs_than_asked(monkeypatch):
    monkeypatch.setattr(measure, "MEASURED_S", 0.0)


SHORT = ("--prefill", "8", "--decode", "4", "--runs", "2", "--warmup", "0")


def test_table(file, capsys):
    assert main(["benchmark", str(file), *SHORT, "--depths", "0,16", "--no-weight-cache"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["median", "of", "2", "min", "max"]
    names = ["prefill (8 tokens) ", "decode (4 tokens) ", "prefill (8 tokens after 16)", "decode (4 tokens after 16)"]
    names.append("time to first token")
    assert all(line.startswith(name) for line, name in zip(lines[1:6], names, strict=True))
    assert lines[6].startswith("load ") and "peak memory" in lines[6] and lines[6].endswith("no weight cache")


def test_json_for_each_number_of_threads(file, capsys):
    assert main(["benchmark", str(file), *SHORT, "--threads", "1,2,1", "--json", "--save"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert [record["threads"] for record in found["records"]] == [1, 2]
    assert BenchmarkRecord.from_dict(found) == BenchmarkRecord.from_dict(found["records"][0])
    assert read_results(file.parent)[0].results["benchmark"] == found["records"]


def test_csv(file, capsys):
    assert main(["benchmark", str(file), *SHORT, "--format", "csv"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["file"] == "toy.tflite" and float(row["decode_tokens_per_second"]) > 0


def test_saved_by_target(tmp_path):
    file = tmp_path / "story.tflite"
    file.write_bytes(bytes(RECORD.file_bytes))
    for record in (RECORD, replace(RECORD, target="local"), replace(RECORD, noise=())):
        save(file, kept(file), [record])
    records = read_results(tmp_path)[0].results["benchmark"]
    assert [(record["target"], record["noise"]) for record in records] == [("local", list(RECORD.noise)), ("ssh://pi", [])]
    file.write_bytes(b"another content")
    assert kept(file) == []


@pytest.mark.parametrize("beside", ['{"file": "x"}', '[{"target": "local"}]', "[1]"])
def test_what_lies_beside_must_be_records(file, tmp_path, beside):
    copy = tmp_path / "story.tflite"
    copy.write_bytes(file.read_bytes())
    copy.with_name("story.tflite.benchmark.json").write_text(beside)
    with pytest.raises(RuntimeFileError, match="is not a list of benchmark records"):
        kept(copy)


def test_another_machine_is_described():
    lines = describe(replace(RECORD, load_s=None)).splitlines()
    assert lines[0] == "ssh://pi: Cortex-A76, 4 cores, Linux 6.6, ai-edge-litert 2.3.0"
    assert lines[-1] == "the machine was not quiet: another process took 40 % of a core"
    assert not [line for line in lines if line.startswith("prefill") and "after 512" in line]
    bare = replace(RECORD, depths=(replace(RECORD.depths[1]),), peak_rss_bytes=None, noise=(), threads=1)
    assert describe(bare).splitlines()[-1] == "1 thread"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "raspberrypi"), "there is no target 'raspberrypi'"),
        (("--prefill", "0"), "--prefill 0 is not possible"),
        (("--threads", "0"), "--threads 0 is not possible: it is 1 or more"),
        (("--threads", "two"), "'two' is not a list"),
        (("--depths", "0,400"), "need a context of"),
        (("--runner", "x"), "--runner x is for adb"),
    ],
)
def test_bad_input(file, arguments, message, capsys):
    try:
        assert main(["benchmark", str(file), *arguments]) == 2
    except SystemExit as leaving:  # from argparse
        assert leaving.code == 2
    printed = capsys.readouterr()
    assert message in printed.err and len(printed.err.strip().splitlines()) == 1 and not printed.out
