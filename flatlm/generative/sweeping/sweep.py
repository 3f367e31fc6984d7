"""A sweep from its file to its table: what is done already stays, what is impossible is said, the rest is done cell by cell.

First all exports and evaluations, several at a time where asked for; then the benchmarks one by one, so that nothing of ours runs
beside them.
"""

import fcntl
import json
import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from flatlm.convert.atomic_file import atomic_output
from flatlm.errors import FlatlmError, SweepError
from flatlm.generative.sweeping.keys import Keys
from flatlm.generative.sweeping.plan import Cell, Model, Sweep
from flatlm.generative.sweeping.process import Processes, Task
from flatlm.generative.sweeping.record import BENCHMARK, EVALUATE, EXPORT, PLAN, CellRecord, Job
from flatlm.generative.sweeping.steps import Steps, build, fault, measure, remove_file_if_done, request_of
from flatlm.generative.sweeping.summary import CellSummary, summary_of
from flatlm.progress import Progress
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.exporter import plan_export

SUMMARY_NAME = "summary.json"
LOCK_NAME = ".lock"


class Pool(Protocol):
    """Runs tasks, in any order; what came of each is in its cell's folder."""

    def run(self, tasks: Sequence[Task]) -> Generator[Task]:
        """Each as it ends. Closed early, it ends what is at work."""
        ...


@dataclass(frozen=True)
class LocalPool:
    """So many processes at a time on this machine."""

    jobs: int = 1

    def run(self, tasks: Sequence[Task]) -> Generator[Task]:
        processes = Processes()
        if self.jobs > 1:
            tasks = [replace(task, threads=max(1, (os.cpu_count() or 1) // self.jobs)) for task in tasks]
        with ThreadPoolExecutor(self.jobs) as threads:
            try:
                futures = {threads.submit(processes.run, task): task for task in tasks}
                for future in as_completed(futures):
                    future.result()
                    yield futures[future]
            finally:
                processes.stop()


@dataclass(frozen=True)
class SweepReport:
    """What is known about each cell, in the sweep's order."""

    directory: Path
    cells: tuple[CellSummary, ...]

    @property
    def failed(self) -> tuple[CellSummary, ...]:
        return tuple(cell for cell in self.cells if cell.state != "done")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "directory": str(self.directory),
            "done": len(self.cells) - len(self.failed),
            "failed": len(self.failed),
            "cells": [cell.to_dict() for cell in self.cells],
        }


def run_sweep(
    sweep: Sweep, directory: Path, *, pool: Pool | None = None, steps: Steps | None = None, progress: Progress | None = None
) -> SweepReport:
    """Do what is pending of each cell, in `directory`/NAME/, and write `directory`/summary.json.

    Started again after an end of any kind, it goes on where it was. What a cell fails of is in its record. Raises SweepError where the
    directory cannot be written, or another sweep is at work in it.
    """
    pool, steps = pool or LocalPool(), steps or Steps()
    with _locked(directory):
        jobs = _Jobs(sweep, directory)
        tell = progress or (lambda stage, done, total: None)
        try:
            _run(pool, [Task(build, job, steps) for job in jobs.ready(EXPORT, EVALUATE)], "cells", tell)
            _run(LocalPool(), [Task(measure, job, steps) for job in jobs.ready(BENCHMARK)], "benchmarks", tell)
        finally:
            records = [CellRecord.read(jobs.found[cell.name]) for cell in sweep.cells]
            for record in records:
                remove_file_if_done(record)
            report = SweepReport(directory, tuple(map(summary_of, records)))
            with atomic_output(directory / SUMMARY_NAME) as temporary:
                temporary.write_text(json.dumps(report.to_dict(), indent=2) + "\n", "utf-8")
    return report


def _run(pool: Pool, tasks: Sequence[Task], stage: str, progress: Progress) -> None:
    if not tasks:
        return
    progress(stage, 0, len(tasks))
    with closing(pool.run(tasks)) as ended:
        for done, _ in enumerate(ended, 1):
            progress(stage, done, len(tasks))


class _Jobs:
    """Every cell's job; cells that cannot be made are recorded as failed at once."""

    def __init__(self, sweep: Sweep, directory: Path) -> None:
        self.found: dict[str, Job] = {}
        keys = Keys()
        for model, cells in _by_model(sweep.cells).items():
            obstacles: dict[str, str] | None = None
            for cell in cells:
                try:
                    job = Job(cell, directory.absolute() / cell.name, keys.of(cell))
                    if EXPORT in CellRecord.read(job).pending:
                        obstacles = _obstacles(model, cells) if obstacles is None else obstacles
                    problem = (obstacles or {}).get(cell.name)
                except Exception as error:
                    problem = _problem(error)
                if problem is not None:
                    job = Job(cell, directory.absolute() / cell.name, {PLAN: ""})
                    CellRecord.read(job).fail(PLAN, problem)
                self.found[cell.name] = job

    def ready(self, *kinds: str) -> list[Job]:
        """Those with a pending step that begins so."""
        return [job for job in self.found.values() if any(step.startswith(kinds) for step in CellRecord.read(job).pending)]


def _by_model(cells: Sequence[Cell]) -> dict[Model, list[Cell]]:
    grouped: dict[Model, list[Cell]] = {}
    for cell in cells:
        grouped.setdefault(cell.model, []).append(cell)
    return grouped


def _obstacles(model: Model, cells: Sequence[Cell]) -> dict[str, str]:
    """Why cells of a model cannot be made, by name; found without reading a weight. Raises nothing: what is damaged is an obstacle."""
    found = {}
    try:
        with open_checkpoint(model.checkpoint, lora=model.lora) as checkpoint:
            for cell in cells:
                try:
                    plan_export(checkpoint, request_of(cell, Path(f"{cell.name}.{cell.format}")))
                except Exception as error:
                    found[cell.name] = _problem(error)
    except Exception as error:
        return {cell.name: _problem(error) for cell in cells}
    return found


def _problem(error: Exception) -> str:
    """Whatever it is, it is this cell's."""
    return str(error) if isinstance(error, FlatlmError) else fault(error)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Two sweeps in one folder would write each other's files. The lock goes with its process, however that ends."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise SweepError(f"{directory} cannot be written ({error.strerror}): choose another folder with -o") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SweepError(
                f"{directory} is in use: another sweep is at work in it; wait for it, or choose another folder with -o"
            ) from None
        yield
    finally:
        os.close(handle)
