"""The sweep itself, its cells in real processes: what is done, what is not done again, and what survives which death."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file, save_file

from flatlm.errors import SweepError
from flatlm.generative.sweeping.keys import Keys
from flatlm.generative.sweeping.plan import read_sweep
from flatlm.generative.sweeping.sweep import LocalPool
from flatlm.utilities.results import read_results
from tests.generative.sweeping import made_steps as made
from tests.generative.sweeping.conftest import ROOT
from tests.processes import is_running

CELL = "tiny-none-p4-kv16"
ALL = sorted([f"benchmark local {CELL}", f"benchmark ssh://pi@board {CELL}", f"evaluate {CELL}", f"export {CELL}"])


def test_what_is_done_is_not_done_again(folder, cells_of):
    cells_of(16)
    first = folder.run()
    assert folder.calls() == ALL
    (cell,) = first.cells
    assert (cell.state, cell.bytes, cell.mean_kl, cell.perplexity) == ("done", 7, 0.25, 4.0)
    assert [(speed.target, speed.prefill_tokens_per_second, speed.decode_tokens_per_second) for speed in cell.speeds] == [
        ("local", 100.0, 10.0),
        ("ssh://pi@board", 100.0, 10.0),
    ]
    assert folder.run() == first
    assert folder.calls() == []
    assert json.loads((folder.out / "summary.json").read_text()) == json.loads(json.dumps(first.to_dict()))
    (found,) = read_results(folder.out)
    assert set(found.results) == {"manifest", "evaluation", "benchmark"}
    assert [entry["target"] for entry in found.results["benchmark"]] == ["local", "ssh://pi@board"]


def test_each_change_repeats_what_depends_on_it(folder, cells_of, tiny_checkpoint):
    cells_of(16)
    folder.run()
    folder.calls()
    (folder.path / "text.txt").write_text("another text")
    folder.run()
    assert folder.calls() == [f"evaluate {CELL}"]
    cells_of(16, benchmark={"targets": ["local"], "runs": 2})
    folder.run()
    assert folder.calls() == [f"benchmark local {CELL}"]
    cells_of(16, benchmark={"targets": ["local"], "runs": 2}, prefill_logits=True)
    folder.run()
    assert folder.calls() == [f"benchmark local {CELL}", f"evaluate {CELL}", f"export {CELL}"]
    (folder.out / CELL / f"{CELL}.tflite").write_bytes(b"cut")
    folder.run()
    assert folder.calls() == [f"export {CELL}"], "a file that is not as it was written is written again"
    (folder.out / CELL / "cell.json").write_text("{")
    folder.run()
    assert folder.calls() == [f"benchmark local {CELL}", f"evaluate {CELL}", f"export {CELL}"]


def test_keys_are_of_contents(folder, cells_of, tiny_checkpoint):
    import shutil

    copy = folder.path / "moved"
    shutil.copytree(tiny_checkpoint, copy)

    def keys(**more) -> dict[str, str]:
        cells_of(16, **more)
        return Keys().of(read_sweep(folder.file).cells[0])

    first = keys()
    assert keys(models=[{"checkpoint": "moved", "name": "other"}]) == first, "where it lies does not count"
    different = [keys(recipes=["dynamic_int8"]), keys(verify=False), keys(verify=8), keys(format="litertlm"), keys(prefill=[[8]])]
    (copy / "tokenizer_config.json").write_text("{}")
    different.append(keys(models=["moved"]))
    (copy / "tokenizer_config.json").unlink()
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][3] += 1e-3
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    different.append(keys(models=["moved"]))
    for step in first:
        values = [first[step], *(found[step] for found in different)]
        assert len(set(values)) == len(values), f"each changes the key of {step}"
    assert keys(calibration="text.txt")["export"] == first["export"], "no recipe reads it"
    options = keys(benchmark={"targets": ["local", "ssh://pi@board"], "decode": 7}, evaluate={"text": "text.txt", "max_tokens": 5})
    assert options["export"] == first["export"]
    assert all(options[step] != first[step] for step in first if step != "export")


def test_a_change_of_tasks_repeats_evaluations(folder, cells_of):
    pytest.importorskip("lm_eval", reason="tasks need lm_eval: pip install 'flatlm[lm-eval]'")
    own = folder.path / "own"
    own.mkdir()
    (own / "task.yaml").write_text("task: own")
    evaluated = {"tasks": ["own"], "include_path": "own"}

    def key(**more) -> str:
        cells_of(16, evaluate={**evaluated, **more})
        keys = Keys().of(read_sweep(folder.file).cells[0])
        assert keys["export"] == first["export"]
        return keys["evaluate"]

    cells_of(16)
    first = Keys().of(read_sweep(folder.file).cells[0])
    found = [first["evaluate"], key(), key(tasks=["other"]), key(limit=5), key(num_fewshot=0), key(apply_chat_template=True)]
    found += [key(text="text.txt"), key(text="text.txt", layers=True)]
    (own / "task.yaml").write_text("task: own # changed")
    found.append(key())
    (own / "deep").mkdir()
    (own / "deep" / "data.jsonl").write_text("{}")
    found.append(key())
    assert len(set(found)) == len(found)
    own.rename(folder.path / "moved")
    assert key(include_path="moved") == found[-1], "where it lies does not count"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flatlm.generative.harness.tasks.version", lambda name: "another")
        assert key(include_path="moved") != found[-1]


def test_scores_are_of_the_tasks_that_the_sweep_names(folder, cells_of):
    pytest.importorskip("lm_eval", reason="tasks need lm_eval: pip install 'flatlm[lm-eval]'")
    cells_of(16, evaluate={"text": "text.txt", "tasks": ["group", "own_*"], "layers": True})
    (cell,) = folder.run().cells
    assert [(score.task, score.metric, score.score) for score in cell.scores] == [
        ("group", "acc", 0.5),
        ("own_1", "em,x", 1.0),
        ("own_2", "em,x", 0.0),
    ]
    layers = folder.out / CELL / f"{CELL}.tflite.layers.json"
    assert layers.exists()
    cells_of(16)
    (cell,) = folder.run().cells
    assert (cell.scores, cell.perplexity) == ((), 4.0)
    assert not layers.exists(), "it was of an evaluation that nobody asks for any more"


def test_tasks_without_the_harness_are_refused_before_any_work(folder, cells_of, monkeypatch):
    monkeypatch.setattr("flatlm.generative.harness.tasks.find_spec", lambda name: None)
    cells_of(16, evaluate={"tasks": ["own"]})
    (cell,) = folder.run().cells
    assert (cell.state, cell.error) == ("failed", "tasks need lm_eval: pip install 'flatlm[lm-eval]'")
    assert folder.calls() == []


def test_a_failed_cell_sinks_none_and_is_tried_again(folder, cells_of):
    lengths = [made.SEGFAULT, made.KILLED, made.REFUSED, made.TOO_FAR, made.BUG, made.NO_EVALUATION, made.NO_DEVICE, 16]
    cells_of(*lengths, 3, prefill=[[4]])
    report = folder.run(pool=LocalPool(2))
    errors = {cell.name.removeprefix("tiny-none-p4-kv"): cell.error for cell in report.failed}
    log = "log.txt has wh"
    assert "its process was ended by SIGSEGV" in errors.pop("40") and "perhaps for want of memory" in errors.pop("41")
    assert errors.pop("42") == "there is no such export"
    assert errors.pop("43") == "too far off"
    assert log in (bug := errors.pop("44")) and bug.startswith("IndexError: list index out of range")
    assert errors.pop("45") == "no such text"
    assert errors.pop("46") == "ssh://pi@board went away"
    assert "--prefill 4 is longer than the cache of 3 slots" in errors.pop("3")
    assert not errors
    assert "Segmentation fault" in (folder.out / "tiny-none-p4-kv40" / "log.txt").read_text()
    assert "IndexError" in (folder.out / "tiny-none-p4-kv44" / "log.txt").read_text()
    rejected = json.loads((folder.out / "tiny-none-p4-kv43" / "cell.json").read_text())
    assert rejected["steps"]["export"]["verification"] == {"mean_kl": 9.0}
    calls = folder.calls()
    assert not any(call.endswith("kv3") for call in calls)
    assert [call for call in calls if call.endswith("kv45")] == [
        f"{step} tiny-none-p4-kv45" for step in ("benchmark local", "benchmark ssh://pi@board", "evaluate", "export")
    ]
    (folder.path / "text.txt").write_text("again")
    cells_of(made.NO_EVALUATION, made.NO_DEVICE, made.REFUSED, 16)
    assert [cell.name for cell in folder.run().failed] == ["tiny-none-p4-kv46", "tiny-none-p4-kv42"]
    assert [call for call in folder.calls() if not call.startswith("evaluate")] == [
        "benchmark ssh://pi@board tiny-none-p4-kv46",
        "export tiny-none-p4-kv42",
    ]


def test_results_of_what_a_cell_was_before_do_not_stay(folder, cells_of):
    (folder.path / "text.txt").write_text("again")
    cells_of(made.TOO_FAR, made.NO_EVALUATION, verify=False)
    assert not folder.run().failed
    cells_of(made.TOO_FAR, made.NO_EVALUATION, verify=True)
    (folder.path / "text.txt").write_text("once")
    assert [cell.error for cell in folder.run().cells] == ["too far off", "no such text"]
    assert sorted(path.name for path in (folder.out / "tiny-none-p4-kv43").iterdir()) == ["cell.json", "log.txt", "parent"]
    kinds = {path.suffixes[-2] for path in (folder.out / "tiny-none-p4-kv45").glob("*.tflite.*.json")}
    assert kinds == {".manifest", ".benchmark"}


def test_files_that_are_not_kept_are_made_again_where_needed(folder, cells_of):
    cells_of(16, made.NO_DEVICE, keep_files=False)
    folder.run()
    assert not (folder.out / CELL / f"{CELL}.tflite").exists()
    assert (folder.out / CELL / f"{CELL}.tflite.evaluation.json").exists()
    assert (folder.out / "tiny-none-p4-kv46" / "tiny-none-p4-kv46.tflite").exists(), "the next try needs it"
    cells_of(16, keep_files=False)
    folder.calls()
    assert folder.run().cells[0].state == "done" and folder.calls() == []
    (folder.path / "text.txt").write_text("another text")
    folder.run()
    assert folder.calls() == [f"evaluate {CELL}", f"export {CELL}"]
    assert not (folder.out / CELL / f"{CELL}.tflite").exists()
    cells_of(16, keep_files=True)
    folder.run()
    assert folder.calls() == [f"export {CELL}"]
    cells_of(16, keep_files=False)
    folder.run()
    assert folder.calls() == [] and not (folder.out / CELL / f"{CELL}.tflite").exists()


def test_an_unreadable_checkpoint_keeps_what_is_known(folder, cells_of, tiny_checkpoint):
    import shutil

    (folder.path / "tiny").unlink()
    shutil.copytree(tiny_checkpoint, folder.path / "tiny")
    cells_of(16)
    folder.run()
    folder.calls()
    weights = folder.path / "tiny" / "model.safetensors"
    aside = weights.rename(folder.path / "aside")
    weights.write_bytes(aside.read_bytes()[:100])
    (cell,) = folder.run().cells
    assert cell.state == "failed" and "model.safetensors" in cell.error
    aside.replace(weights)
    (cell,) = folder.run().cells
    assert cell.state == "done" and cell.error is None and folder.calls() == []
    os.utime(weights)  # written anew, it may differ where samples do not look
    folder.run()
    assert f"export {CELL}" in folder.calls()


def test_what_nobody_foresaw_is_one_cell_s(folder, cells_of, monkeypatch):
    from flatlm.generative.sweeping import sweep

    def plan(checkpoint, request):
        if request.kv_cache_len == 17:
            raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(sweep, "plan_export", plan)
    cells_of(16, 17)
    assert [(cell.state, cell.error) for cell in folder.run().cells] == [("done", None), ("failed", "ZeroDivisionError: division by zero")]


def test_a_bad_file_changes_nothing(folder, cells_of):
    cells_of(16)
    folder.run()
    before = {path: path.stat().st_mtime_ns for path in folder.out.rglob("*")}
    cells_of(16, colour="red")
    with pytest.raises(SweepError, match="colour"):
        folder.run()
    assert {path: path.stat().st_mtime_ns for path in folder.out.rglob("*")} == before


DRIVER = """
import sys
from pathlib import Path
from tests.generative.sweeping.conftest import Folder
Folder(Path(sys.argv[1])).run()
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_an_end_in_the_middle_leaves_nothing_running_and_is_gone_on_from(ending, folder, cells_of):
    cells_of(16, made.SLOW)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(folder.path)], cwd=ROOT, stderr=subprocess.DEVNULL)
    slow = folder.out / "tiny-none-p4-kv47"
    try:
        wait_for(lambda: (slow / "pid").exists() and (slow / "pid").read_text())
        with pytest.raises(SweepError, match="another sweep is at work in it"):
            folder.run()
        driver.send_signal(ending)
        driver.wait(30)
    finally:
        driver.kill()
        driver.wait()
    cell = int((slow / "pid").read_text())
    wait_for(lambda: not is_running(cell))
    assert sorted(folder.calls()) == [f"evaluate {CELL}", f"export {CELL}", "export tiny-none-p4-kv47"]
    assert json.loads((slow / "cell.json").read_text())["state"] == "unfinished"
    assert (folder.out / "summary.json").exists() == (ending == signal.SIGINT)
    cells_of(16)
    assert folder.run().cells[0].state == "done"
    assert folder.calls() == [f"benchmark local {CELL}", f"benchmark ssh://pi@board {CELL}"]


def test_leftovers_of_a_killed_process_go(folder, cells_of):
    cells_of(16)
    left = folder.out / CELL / f".{CELL}.x1y2.partial.tflite"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    folder.run()
    assert not left.exists()


def wait_for(holds, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
