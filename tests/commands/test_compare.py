"""flatlm compare: what it prints, its JSON, what it saves."""

import json
from pathlib import Path

import pytest

from flatlm.cli import main
from flatlm.commands.compare import describe
from flatlm.generative.benchmarking.record import Machine, Measure
from flatlm.generative.comparison import compare as module
from flatlm.generative.comparison.ratios import Ratio
from flatlm.generative.comparison.record import MEASURES, Comparison, Speeds, SubjectFigures, SubjectRatio
from flatlm.utilities.results import read_comparisons
from tests.examples.references import Case, make_llama


@pytest.fixture(autouse=True)
def one_run_a_turn_and_one_process_each(monkeypatch):
    monkeypatch.setattr(module, "TURN_S", 0.0)
    monkeypatch.setattr(module, "FRESH_S", 0.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    make_llama(Case("grouped_queries"), directory)
    return directory


@pytest.fixture(scope="module")
def file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.tflite"
    assert main(["export", str(checkpoint), "-o", str(path), "--recipe", "none", "--prefill", "8", "--no-verify"]) == 0
    return path


def test_files_and_recipes(checkpoint: Path, file: Path, tmp_path: Path, capsys) -> None:
    options = ["--prefill", "8", "--decode", "3", "--rounds", "6", "--threads", "1", "--depths", "0,4"]
    recipes = ["--checkpoint", str(checkpoint), "--recipes", "none,dynamic_int8"]
    assert main(["compare", str(file), *recipes, *options, "--save", str(tmp_path / "found"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [subject["name"] for subject in found["subjects"]] == ["model.tflite", "none", "dynamic_int8"]
    for subject in found["subjects"]:
        keys = ("prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_s", "load_s", "peak_rss_bytes")
        assert all(subject[key] > 0 for key in keys)
        assert [speeds["depth"] for speeds in subject["depths"]] == [0, 4]
    (note,) = found["notes"]  # the recipes' files have the signature that was asked for
    assert note.startswith("each subject had one process")
    assert list(read_comparisons(tmp_path)) == [found]
    assert [path.name for path in tmp_path.iterdir()] == ["found.comparison.json"]


def test_a_table(file: Path, capsys) -> None:
    options = ["--decode", "3", "--rounds", "1", "--threads", "1"]
    assert main(["compare", str(file), str(file), *options]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[1].startswith("model.tflite ") and lines[2].startswith("model.tflite #2 ")
    assert "a prompt of 8 tokens, then 3 decoded; 1 threads; medians of 1 rounds" in out
    assert "fewer than 6 rounds tell no interval" in out
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give two subjects or more"),
        (["{file}"], "give two subjects or more"),
        (["{file}", "no.tflite"], "no.tflite cannot be read: no such file"),
        (["{file}", "--recipes", "none"], "--checkpoint and --recipes go together"),
        (["{file}", "--checkpoint", "{checkpoint}", "--recipes", "nine"], "nine"),
        (["{file}", "{file}", "--until", "x%"], "'x%' is not a part such as 5%"),
        (["{file}", "{file}", "--until", "100%"], "'100%' is not a part"),
        (["{file}", "{file}", "--prefill", "2000"], "need a context of"),
    ],
)
def test_bad_input(arguments, message, file: Path, checkpoint: Path, capsys) -> None:
    try:
        status = main(["compare", *(argument.format(file=file, checkpoint=checkpoint) for argument in arguments)])
    except SystemExit as leaving:
        status = leaving.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "") and message in err and len(err.strip().splitlines()) == 1


def comparison(ratio: Ratio, depths=(0,)) -> Comparison:
    speeds = tuple(Speeds(depth, Measure(1234.5, 1, 2, 9), Measure(56.78, 1, 2, 9), Measure(0.01234, 1, 2, 9)) for depth in depths)
    subjects = tuple(SubjectFigures(name, f"{name}.tflite", 10, "lite", speeds, Measure(0.5, 0.4, 0.6, 9), 7_000_000) for name in "ab")
    ratios = tuple(SubjectRatio("b", "a", name, depth, ratio) for name in MEASURES for depth in depths)
    return Comparison(subjects, ratios, 128, 64, 2, Machine("a CPU", "", 2, 0, "", ""), ("a note",), ("a reason",))


def test_what_is_printed() -> None:
    lines = describe(comparison(Ratio(1.2, 1.1, 1.3, 9))).splitlines()
    assert lines[1].split() == ["a", "1,234", "1", "56.8", "1", "12.3", "1", "0.50", "7"]
    assert lines[2].count("1.200 (1.100 to 1.300)") == 3
    assert "(=)" not in "".join(lines)
    assert lines[-2:] == ["note: a note", "the machine was not quiet: a reason"]


def test_what_is_not_shown_to_differ_is_marked() -> None:
    text = describe(comparison(Ratio(1.0, 0.9, 1.3, 9)))
    assert text.count("(0.900 to 1.300) (=)") == 3
    assert "(=) cannot be told from 1 by these rounds" in text


def test_markdown_and_depths() -> None:
    lines = describe(comparison(Ratio(1.2, 1.1, 1.3, 9), (0, 512)), markdown=True).splitlines()
    assert [line.split("|")[1:3] for line in lines[2:6]] == [[" a ", " 0 "], [" a ", " 512 "], [" b ", " 0 "], [" b ", " 512 "]]
    assert len({line.count("|") for line in lines[:6]}) == 1
