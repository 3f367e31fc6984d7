"""What is known about a cell, `cell.json` in its folder: which steps are done, by the digest of what decides their results."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flatlm import __version__
from flatlm.convert.atomic_file import atomic_output
from flatlm.generative.sweeping.plan import Cell
from flatlm.utilities.results import KINDS, read_json_result, result_path, save_result

FILE_NAME = "cell.json"
LOG_NAME = "log.txt"
EXPORT, EVALUATE, BENCHMARK = "export", "evaluate", "benchmark "
"""Names of steps; a benchmark's is followed by its target."""
PLAN = "plan"
"""What failed where a cell is impossible, or its checkpoint cannot be read: no step was begun, and none is known to be stale."""


@dataclass(frozen=True)
class Job:
    """A cell, where its results go, and the key of each step: equal keys, equal results. Steps in the order they are done."""

    cell: Cell
    folder: Path
    keys: Mapping[str, str]

    @property
    def file(self) -> Path:
        return self.folder / f"{self.cell.name}.{self.cell.format}"


@dataclass
class CellRecord:
    """Steps by name, each with `state` (running, done, failed), `key`, `seconds`, and an `error` where it failed."""

    job: Job
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, job: Job) -> "CellRecord":
        """What an earlier run left; nothing where that cannot be read, or is of a file that is not there as it was."""
        try:
            found = json.loads((job.folder / FILE_NAME).read_text("utf-8"))["steps"]
            return cls(job, {str(name): dict(step) for name, step in found.items() if name != PLAN or PLAN in job.keys})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(job)

    def is_done(self, step: str) -> bool:
        entry = self.steps.get(step, {})
        return entry.get("state") == "done" and entry.get("key") == self.job.keys.get(step)

    @property
    def pending(self) -> list[str]:
        """The steps that have to be done, the export among them where a later one needs the file and it is gone."""
        steps = [step for step in self.job.keys if not self.is_done(step)]
        if EXPORT in self.job.keys and EXPORT not in steps and (steps or self.job.cell.keep_file) and not self._file_is_whole():
            steps.insert(0, EXPORT)
        return steps

    @property
    def errors(self) -> dict[str, str]:
        return {name: step["error"] for name, step in self.steps.items() if name in self.job.keys and step.get("state") == "failed"}

    @property
    def state(self) -> str:
        """done, failed, or unfinished."""
        if self.errors:
            return "failed"
        return "unfinished" if self.pending else "done"

    def begin(self, step: str) -> None:
        self._put(step, "running", 0.0, {})

    def finish(self, step: str, seconds: float, **facts: Any) -> None:
        self._put(step, "done", seconds, facts)

    def fail(self, step: str, error: str, seconds: float = 0.0, **facts: Any) -> None:
        self._put(step, "failed", seconds, {"error": error, **facts})

    def fail_current(self, error: str) -> None:
        """Of a process that died: the step that it was at, or was to begin with."""
        running = [name for name, step in self.steps.items() if step.get("state") == "running"]
        self.fail((running or self.pending or [EXPORT])[0], error)

    def drop_stale(self) -> None:
        """Remove the results of steps that are to be done anew for another key: what lies in the folder belongs together."""
        stale = {name for name, step in self.steps.items() if name in self.job.keys and step.get("key") != self.job.keys[name]}
        if EXPORT in stale or EXPORT not in self.steps:
            for path in [self.job.file, *(result_path(self.job.file, kind) for kind in KINDS)]:
                path.unlink(missing_ok=True)
            self.steps.clear()
            return
        for name in stale:
            del self.steps[name]
            if name == EVALUATE:
                for kind in ("evaluation", "layers"):
                    result_path(self.job.file, kind).unlink(missing_ok=True)
            else:
                self.put_benchmark(name.removeprefix(BENCHMARK), None)

    def put_benchmark(self, target: str, found: Mapping[str, Any] | None) -> None:
        """A target's record in the place of its old one; None: none."""
        path = result_path(self.job.file, "benchmark")
        kept = [entry for entry in read_json_result(path) if entry.get("target") != target] if path.exists() else []
        kept += [] if found is None else [{**found, "target": target}]
        if kept:
            order = list(self.job.cell.targets)
            kept.sort(key=lambda entry: order.index(entry["target"]) if entry["target"] in order else len(order))
            save_result(self.job.file, "benchmark", kept)
        else:
            path.unlink(missing_ok=True)

    def save(self) -> None:
        """Whole or not at all."""
        cell = self.job.cell
        value = {
            "flatlm": __version__,
            "name": cell.name,
            "state": self.state,
            "errors": self.errors,
            "model": cell.model.name,
            "checkpoint": str(cell.model.checkpoint),
            "recipe": cell.recipe.name,
            "prefill": cell.prefill,
            "kv_cache_len": cell.kv_cache_len,
            "kv_cache_dtype": cell.kv_cache_dtype,
            "file": self.job.file.name,
            "steps": self.steps,
        }
        self.job.folder.mkdir(parents=True, exist_ok=True)
        with atomic_output(self.job.folder / FILE_NAME) as temporary:
            temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8")

    def _put(self, step: str, state: str, seconds: float, facts: Mapping[str, Any]) -> None:
        self.steps[step] = {"state": state, "key": self.job.keys.get(step, ""), "seconds": round(seconds, 3), **facts}
        self.save()

    def _file_is_whole(self) -> bool:
        try:
            return bool(self.job.file.stat().st_size == self.steps[EXPORT]["bytes"])
        except (OSError, KeyError):
            return False
