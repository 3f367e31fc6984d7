"""The cells of a sweep on a Ray cluster: each is a task, whose worker runs it in a process of its own, as this machine would.

All nodes share the folder of results, and see the checkpoints under the same paths; that is tried before any work.
"""

import logging
import os
import platform
import secrets
import socket
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flatlm import __version__
from flatlm.errors import SweepError
from flatlm.generative.own_processes import environment_of_our_own
from flatlm.generative.sweeping.process import Processes, Task
from flatlm.generative.sweeping.record import CellRecord

RETRIES = 1
"""Of a cell whose worker or node went away."""
CONNECT_S = 10.0
PROBE_S = 120.0
_OBJECT_STORE = 80 << 20
"""Bytes of a cluster that is made for the sweep: no more than paths travels through it."""


class RayPool:
    """A cluster for as long as the context lasts. `address`: auto, local, HOST:PORT or ray://HOST:PORT.

    `jobs` cells at a time, by default one for each node; each has its share of the CPUs. Raises SweepError where the cluster cannot be
    reached, or a node is not fit for it: another version, no shared `directory`, no such `inputs`.
    """

    def __init__(self, address: str, directory: Path, inputs: Sequence[Path] = (), *, jobs: int | None = None) -> None:
        self.address, self.directory, self.inputs = address, directory.absolute(), inputs
        self._jobs, self._cpus = jobs or 0, 1

    def __enter__(self) -> Self:
        self._ray = _import_ray()
        self._connect()
        try:
            nodes = [node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
            if not nodes:
                raise SweepError(f"--ray {self.address}: no node of the cluster has a CPU to work with")
            self._jobs = self._jobs or len(nodes)
            counts = [int(node["Resources"]["CPU"]) for node in nodes]
            self._cpus = max(1, min(sum(counts) // self._jobs, min(counts)))
            self._probe(nodes)
        except BaseException:
            self._ray.shutdown()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ray.shutdown()

    def run(self, tasks: Sequence[Task]) -> Generator[Task]:
        """Each as it ends; what killed a worker is recorded as its cell's failure."""
        ray = self._ray
        work = ray.remote(num_cpus=self._cpus, max_retries=RETRIES, scheduling_strategy="SPREAD")(_run)
        waiting, at_work = list(reversed(tasks)), dict[Any, Task]()
        try:
            while waiting or at_work:
                while waiting and len(at_work) < self._jobs:
                    task = replace(waiting.pop(), threads=self._cpus)
                    at_work[work.remote(task)] = task
                for reference in ray.wait(list(at_work), num_returns=1)[0]:
                    task = at_work.pop(reference)
                    try:
                        ray.get(reference)
                    except ray.exceptions.RayError as error:
                        CellRecord.read(task.job).fail_current(f"its Ray worker failed: {_last_line(error)}")
                    yield task
        finally:
            for reference in at_work:
                with suppress(Exception):
                    ray.cancel(reference, force=True)

    def _connect(self) -> None:
        _require_an_answer(self.address)
        variables = {"PYTHONPATH": environment_of_our_own()["PYTHONPATH"]}
        options: dict[str, Any] = {"address": self.address, "runtime_env": {"env_vars": variables}}
        if not self.address.startswith("ray://"):
            options |= {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
        try:
            self._ray.init(**options)
        except Exception as error:  # Ray raises many kinds, of its own and of others
            raise SweepError(f"--ray {self.address}: cannot be reached ({_last_line(error)}); {_way_out(self.address, error)}") from error

    def _probe(self, nodes: Sequence[dict[str, Any]]) -> None:
        """Every node reads a file that was just written into the folder of results, and writes one beside it."""
        ray = self._ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        word = secrets.token_hex(8)
        self.directory.mkdir(parents=True, exist_ok=True)
        asked = self.directory / f".probe-{word}"
        asked.write_text(word, "utf-8")
        try:
            probe = ray.remote(num_cpus=0, max_retries=0)(_look_around)
            here = _versions()
            for node in nodes:
                where = f"--ray {self.address}: node {node['NodeManagerAddress']}"
                on_it = probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
                try:
                    versions, problem = ray.get(on_it.remote(asked, word, node["NodeID"], list(self.inputs)), timeout=PROBE_S)
                except ray.exceptions.GetTimeoutError:
                    raise SweepError(f"{where} did not answer in {PROBE_S:.0f} s: is it busy, or gone?") from None
                except ray.exceptions.RayError as error:
                    raise SweepError(f"{where} cannot run FlatLM ({_last_line(error)}): install flatlm {__version__} on it") from error
                if versions != here:
                    raise SweepError(f"{where} has {versions}, and here is {here}: install the same on all nodes")
                answer = self.directory / f".probe-{word}-{node['NodeID']}"
                if problem is None and not answer.exists():
                    problem = f"writes what it finds under {self.directory} elsewhere: choose a folder that all nodes share, with -o"
                if problem is not None:
                    raise SweepError(f"{where} {problem}")
        finally:
            for path in self.directory.glob(f".probe-{word}*"):
                path.unlink(missing_ok=True)


def _run(task: Task) -> None:
    """In a Ray worker."""
    Processes().run(task)


def _look_around(asked: Path, word: str, node: str, inputs: Sequence[Path]) -> tuple[str, str | None]:
    """On a node: its versions, and what is not as the sweep needs it."""
    try:
        found = asked.read_text("utf-8") == word
        if found:
            asked.with_name(f"{asked.name}-{node}").write_text(word, "utf-8")
    except FileNotFoundError:
        found = False
    except OSError as error:
        return _versions(), f"cannot write to {asked.parent} ({error.strerror}): choose a folder that all nodes share, with -o"
    if not found:
        return _versions(), f"does not see {asked.parent}: choose a folder that all nodes share, with -o"
    missing = [str(path) for path in inputs if not path.exists()]
    return _versions(), f"does not see {', '.join(missing)}: it must lie under the same path on all nodes" if missing else None


def _versions() -> str:
    return f"flatlm {__version__}, Python {'.'.join(platform.python_version_tuple()[:2])}"


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise SweepError("--ray needs Ray: pip install 'flatlm[ray]'") from None
    return ray


def _require_an_answer(address: str) -> None:
    """Ray itself tries for a minute before it says that nobody is there."""
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise SweepError(f"--ray {address}: use auto, local, HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise SweepError(f"--ray {address}: cannot be reached ({error.strerror or error}); is the cluster running there?") from error


def _way_out(address: str, error: BaseException) -> str:
    """After a connection that failed."""
    cause: BaseException | None = error
    while cause is not None:
        if "AuthenticationError" in (type(cause).__name__, *str(cause).replace(":", " ").replace(".", " ").split()):
            return "it asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what `ray get-auth-token` prints on its head"
        cause = cause.__cause__ or cause.__context__
    if address.startswith("ray://"):
        return "a ray:// address needs pip install 'ray[client]', here and on the head"
    return "is it running? `ray status` tells"


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:300]}" if lines else type(error).__name__
