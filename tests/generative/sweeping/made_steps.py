"""Steps that take no time and fail where a test wants it: by the length of the cell's cache. Found by name in a cell's own process."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flatlm.errors import ExportError, RuntimeFileError, TargetError, VerificationFailed
from flatlm.generative.sweeping.plan import Cell
from flatlm.generative.sweeping.steps import Steps
from flatlm.utilities.results import save_result

SEGFAULT, KILLED, REFUSED, TOO_FAR, BUG, NO_EVALUATION, NO_DEVICE, SLOW, WORKER_DIES = range(40, 49)
"""Lengths of caches, and what becomes of such a cell."""
CALLS = "calls.txt"
SCORES = {
    "group": {"acc": 0.5, "acc_stderr": 0.1},
    "part_of_group": {"acc": 0.25},
    "own_1": {"em,x": 1.0, "acc": 0.75},
    "own_2": {"em,x": 0.0},
}
"""Of every task."""


def note(file: Path, what: str) -> None:
    with (file.parents[1] / CALLS).open("a") as calls:
        calls.write(f"{what} {file.stem}\n")


def export(cell: Cell, file: Path) -> None:
    note(file, "export")
    (file.parent / "parent").write_bytes(Path(f"/proc/{os.getppid()}/cmdline").read_bytes())
    if cell.kv_cache_len == WORKER_DIES:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(100)
    if cell.kv_cache_len == SEGFAULT:
        os.kill(os.getpid(), signal.SIGSEGV)
    if cell.kv_cache_len == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if cell.kv_cache_len == REFUSED:
        raise ExportError("there is no such export")
    if cell.kv_cache_len == TOO_FAR and cell.verify:
        error = VerificationFailed("too far off")
        error.report = {"mean_kl": 9.0}
        raise error
    if cell.kv_cache_len == BUG:
        raise IndexError("list index out of range")
    if cell.kv_cache_len == SLOW:
        (file.parent / f".{file.stem}.x.partial{file.suffix}").write_bytes(b"half")
        (file.parent / "pid").write_text(str(os.getpid()))
        time.sleep(100)
    file.write_bytes(b"a model")
    save_result(file, "manifest", {"recipe": cell.recipe.name, "signatures": ["prefill_4", "decode"], "kv_cache_len": cell.kv_cache_len})


def evaluate(cell: Cell, file: Path) -> Mapping[str, Any]:
    note(file, "evaluate")
    assert file.read_bytes() == b"a model" and cell.evaluate is not None
    if cell.kv_cache_len == NO_EVALUATION and "again" not in cell.evaluate.text.read_text():
        raise RuntimeFileError("no such text")
    if cell.evaluate.layers:
        save_result(file, "layers", {"layers": []})
    return {"mean_kl": 0.25, "perplexity": 4.0} if cell.evaluate.tasks is None else {"tasks": SCORES, "task_runs": {}}


def benchmark(cell: Cell, file: Path, target: str) -> Mapping[str, Any]:
    note(file, f"benchmark {target}")
    assert file.read_bytes() == b"a model"
    if cell.kv_cache_len == NO_DEVICE and target != "local":
        raise TargetError(f"{target} went away")
    return {"prefill_tokens_per_second": 100.0, "decode_tokens_per_second": 10.0}


STEPS = Steps(export, evaluate, benchmark)
