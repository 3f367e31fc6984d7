"""A cell in a process of its own: what kills it kills nothing else, and its memory is the system's again afterwards.

Run as a module this is that process: a pickled `Task` from our own code on its stdin, which then stays open for as long as somebody
wants the result. When it closes, whatever is at work here ends.
"""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flatlm.generative.own_processes import GRACE_S, ending_of, environment_of_our_own, first_message, kill_session
from flatlm.generative.sweeping.record import LOG_NAME, CellRecord, Job
from flatlm.generative.sweeping.steps import Steps, remove_leftovers


@dataclass(frozen=True)
class Task:
    """`work` (a module's function: `build` or `measure`) on a job."""

    work: Callable[[Job, Steps], None]
    job: Job
    steps: Steps
    threads: int | None = None
    """Of the libraries that take a number from the environment; None: as they like."""


class Processes:
    """Those that are running, to end them all together. Threads may share one."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, task: Task) -> None:
        """Waits for it. A process that dies has its death recorded as the failure of the step that it was at."""
        folder = task.job.folder
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOG_NAME).open("ab") as log:
            with self._lock:
                if self._stopped:
                    return
                process = subprocess.Popen(
                    [sys.executable, "-m", __name__],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=_environment(task.threads),
                    start_new_session=True,  # so that its own children go with it, and Ctrl-C is for us to handle
                )
                self._running.add(process)
            try:
                assert process.stdin is not None
                with suppress(BrokenPipeError):  # it died early: its exit status says how
                    process.stdin.write(pickle.dumps(task))
                    process.stdin.flush()
                status = process.wait()
            finally:
                kill_session(process)
                with self._lock:
                    self._running.discard(process)
        if status != 0:
            remove_leftovers(task.job)
            if not self._stopped:
                record = CellRecord.read(task.job)
                record.fail_current(_ending(status, folder / LOG_NAME))

    def stop(self) -> None:
        """End them, and start no more: each may tidy up for GRACE_S seconds."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + GRACE_S
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            kill_session(process)


def _environment(threads: int | None) -> dict[str, str]:
    counts = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return {**environment_of_our_own(), "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONFAULTHANDLER": "1", **counts}


def _ending(status: int, log: Path) -> str:
    told = f"its process {ending_of(status)}"
    return told if status == -signal.SIGKILL else f"{told}: {log.parent.name}/{log.name} has what it said"


def _main() -> None:
    task: Task = first_message()
    try:
        task.work(task.job, task.steps)
    except KeyboardInterrupt:
        os._exit(130)


if __name__ == "__main__":
    _main()
