"""`flatlm sweep` on a real, tiny checkpoint: files, figures, what is printed, exit status."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flatlm.cli import main
from flatlm.generative.harness.tasks import evaluate_tasks
from flatlm.generative.inspect import read_manifest
from flatlm.generative.runner import Runner
from flatlm.utilities.results import read_results
from tests.generative.sweeping.conftest import ROOT
from tests.harness_tasks import copy_tasks, offline_harness

WORDS = "the a cat dog sat ran on mat and big"
DONE, IMPOSSIBLE = "tiny-none-p4_16-kv48", "tiny-dynamic_int4_block128-p4_16-kv48"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A folder with s.yaml, of a cell that can be made and one whose blocks do not divide the model's rows."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("swept")
    (folder / "tiny").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / "tiny" / name).write_bytes((tiny_checkpoint / name).read_bytes())
    words = ["<unk>", "<s>", "</s>", *WORDS.split()]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tiny" / "tokenizer.json"))
    (folder / "text.txt").write_text(" ".join([WORDS] * 3))
    (folder / "s.yaml").write_text("""
models: [tiny]
recipes: [none, dynamic_int4_block128]
prefill: [[4, 16]]
kv_cache_len: [48]
verify: 16
evaluate: {text: text.txt}
benchmark: {prefill: 4, decode: 4, runs: 2, threads: 1, depths: [0, 8]}
""")
    return folder


def run(swept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, status: int) -> dict:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(swept / "cache"))
    capsys.readouterr()
    assert main(["sweep", str(swept / "s.yaml"), "--json"]) == status
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1
    return json.loads(out)


@pytest.mark.slow
def test_each_cell_is_exported_proved_evaluated_and_measured(swept, capsys, monkeypatch):
    report = run(swept, capsys, monkeypatch, 1)
    done, impossible = report["cells"]
    assert (report["done"], report["failed"]) == (1, 1)
    assert (impossible["name"], impossible["state"]) == (IMPOSSIBLE, "failed")
    assert "128" in impossible["error"] and not (swept / "s" / IMPOSSIBLE / "log.txt").exists(), "nothing was started for it"
    assert (done["name"], done["state"], done["error"]) == (DONE, "done", None)
    assert done["signatures"] == ["prefill_4", "prefill_16", "decode"]
    assert 0 <= done["mean_kl"] < 1e-8 and done["perplexity"] > 1
    (speeds,) = done["speeds"]
    assert speeds["target"] == "local" and speeds["prefill_tokens_per_second"] > 0 and speeds["decode_tokens_per_second"] > 0
    (found,) = read_results(swept / "s")
    assert found.file == swept / "s" / DONE / f"{DONE}.tflite" and done["bytes"] == found.file.stat().st_size
    assert set(found.results) == {"manifest", "inspection", "evaluation", "benchmark"}
    assert found.results["manifest"] == read_manifest(found.file)
    assert found.results["manifest"]["verification"]["tokens_compared"] == 16
    assert found.results["evaluation"]["tokens"] == 29
    assert found.results["benchmark"][0]["target"] == "local" and found.results["benchmark"][0]["decode_tokens"] == 4
    with Runner.open(found.file) as runner:
        assert runner.cache_length == 48

    written = found.file.stat().st_mtime_ns
    (swept / "text.txt").write_text("mat ran dog")
    again = run(swept, capsys, monkeypatch, 1)["cells"][0]
    assert again["perplexity"] != done["perplexity"] and again["speeds"] == done["speeds"]
    assert found.file.stat().st_mtime_ns == written, "another text is evaluated on the same file"


@pytest.mark.slow
def test_tasks_and_layers_of_a_cell(swept, capsys, monkeypatch, tmp_path):
    with offline_harness(tmp_path):
        (swept / "own").mkdir()
        copy_tasks(swept / "own")
        (swept / "s.yaml").rename(swept / "kept.yaml")
        tasks = "tasks: [tiny_choice], include_path: own, limit: 3, num_fewshot: 0"
        (swept / "s.yaml").write_text(f"""
models: [{{checkpoint: tiny, name: asked}}]
recipes: [none]
prefill: [[16]]
kv_cache_len: [48]
prefill_logits: true
verify: false
evaluate: {{text: text.txt, layers: true, {tasks}}}
""")
        (cell,) = run(swept, capsys, monkeypatch, 0)["cells"]
        (swept / "kept.yaml").rename(swept / "s.yaml")
        file = swept / "s" / cell["name"] / f"{cell['name']}.tflite"
        options = {"tokenizer": swept / "tiny", "limit": 3, "num_fewshot": 0, "include_path": swept / "own"}
        expected = evaluate_tasks(file, ["tiny_choice"], **options).to_evaluation()
    (found,) = (found.results for found in read_results(swept / "s") if found.file == file)
    evaluation = found["evaluation"]
    assert evaluation["tasks"] == expected["tasks"] and evaluation["task_runs"] == expected["task_runs"]
    assert evaluation["tokens"] > 1 and evaluation["mean_kl"] < 1e-8
    assert evaluation["stride"] == 24, "plain text is read as `flatlm evaluate` reads it"
    assert cell["scores"] == [{"task": "tiny_choice", "metric": "acc", "score": expected["tasks"]["tiny_choice"]["acc"]}]
    assert found["layers"]["logits_error"] < 1e-5 and found["layers"]["tokens"] == min(48, evaluation["tokens"] + 1)


def test_the_table_says_what_is_done_and_what_failed(swept, capsys):
    from flatlm.commands.sweep import describe
    from flatlm.generative.sweeping.summary import CellSummary, Speeds, TaskScore
    from flatlm.generative.sweeping.sweep import SweepReport

    speeds = (Speeds("local", 1234.5, 56.78), Speeds("adb", None, 3.0))
    done = CellSummary("a-none", "a", "none", ("prefill_8", "decode"), 64, "int8", 2_500_000, 0.01234, 8.5, speeds, 1.0, "done", None)
    failed = CellSummary("b-none", "b", "none", (), None, "float32", None, None, None, (), 0.0, "failed", "no room")
    report = SweepReport(Path("out"), (done, failed))
    assert "acc" not in describe(report)
    scored = replace(done, scores=(TaskScore("arc_easy", "acc", 0.61234), TaskScore("own", "em", 1.0)))
    lines = describe(SweepReport(Path("out"), (scored, failed))).splitlines()
    assert "perplexity  arc_easy acc  own em  prefill/s" in lines[0]
    assert lines[1].split()[8:11] == ["8.5", "0.6123", "1"] and lines[3].split() == ["b", "none", "failed"]
    lines = describe(report).splitlines()
    assert lines[1].split() == ["a", "none", "8", "64", "int8", "local", "2.50", "0.0123", "8.5", "1,234", "56.8", "done"]
    assert lines[2].split() == ["a", "none", "8", "64", "int8", "adb", "2.50", "0.0123", "8.5", "3", "done"]
    assert lines[3].split() == ["b", "none", "failed"]
    assert lines[-2:] == ["b-none: no room", "1 of 2 cells are done, in out; started again, the sweep goes on with the others"]


def test_bad_input_is_one_line_and_status_2(tmp_path, capsys):
    (tmp_path / "tiny").mkdir()
    file = tmp_path / "s.yaml"
    file.write_text("models: [tiny]\nrecipes: [none]\nrecipe: none\n")
    assert main(["sweep", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == f"flatlm sweep: {file}: recipe: unknown key; did you mean recipes?\n"
    assert not (tmp_path / "s").exists()
    file.write_text("models: [tiny]\nrecipes: [none]\n")
    (tmp_path / "s").write_text("a file")
    assert main(["sweep", str(file)]) == 2
    assert "s cannot be written (File exists): choose another folder with -o" in capsys.readouterr().err
