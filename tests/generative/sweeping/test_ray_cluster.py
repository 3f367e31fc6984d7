"""Cells on a real Ray cluster of one node, on the loopback: what a worker's death costs, and what a node has to offer."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flatlm.errors import SweepError
from flatlm.generative.sweeping import ray_cluster
from flatlm.generative.sweeping.ray_cluster import RayPool
from tests.generative.sweeping import made_steps as made
from tests.generative.sweeping.conftest import ROOT, Folder
from tests.generative.sweeping.test_sweep import wait_for
from tests.processes import is_running

START_S = 90


@dataclass(frozen=True)
class Head:
    """A cluster's head node, and the environment that has its token."""

    address: str
    environment: dict[str, str]

    def start(self, folder: Folder, *, before: str = "", **environment: str) -> "subprocess.Popen[str]":
        """`flatlm sweep` in a process of its own, since Ray reads its environment once."""
        command = [
            sys.executable,
            "-c",
            DRIVER + before + "\nsys.exit(main(sys.argv[1:]))",
            "sweep",
            str(folder.file),
            "-o",
            str(folder.out),
        ]
        command += ["--ray", self.address, "--jobs", "2", "--json"]
        environment = {**os.environ, **self.environment, **environment}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def sweep(self, folder: Folder, *, status: int, before: str = "", **environment: str) -> Any:
        """What it printed: JSON, or the error."""
        driver = self.start(folder, before=before, **environment)
        out, err = driver.communicate(timeout=120)
        assert driver.returncode == status, err
        return err.strip().splitlines()[-1] if status == 2 else json.loads(out)


DRIVER = """
import sys
from pathlib import Path
from flatlm.cli import main
from flatlm.generative.sweeping import plan, ray_cluster, sweep
from tests.generative.sweeping.made_steps import STEPS
sweep.Steps = lambda: STEPS
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Ends with the tests."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'flatlm[ray]'")
    command = Path(sys.executable).with_name("ray")
    if not command.exists():
        pytest.skip(f"needs Ray's command {command}")
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # a socket's path has at most 107 letters
    options = ["--node-ip-address=127.0.0.1", f"--port={port}", "--min-worker-port=0", "--max-worker-port=0", f"--temp-dir={folder}"]
    options += ["--num-cpus=2", f"--object-store-memory={80 << 20}", "--include-dashboard=false", "--include-log-monitor=false"]
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    log = folder / "head.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [command, "start", "--head", "--block", "--disable-usage-stats", *options],
            stdout=stream,
            stderr=stream,
            env=os.environ | environment,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_S
        while b"Ray runtime started" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"Ray did not start: {log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield Head(f"127.0.0.1:{port}", environment)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_cells_are_tasks_and_fail_alone(head, folder, cells_of):
    lengths = (16, made.WORKER_DIES, made.SEGFAULT, made.REFUSED, 17)
    cells_of(*lengths)
    report = head.sweep(folder, status=1)
    assert [cell["state"] for cell in report["cells"]] == ["done", "failed", "failed", "failed", "done"]
    errors = {cell["name"][-2:]: cell["error"] for cell in report["cells"]}
    assert errors["48"].startswith("its Ray worker failed: WorkerCrashedError")
    assert "its process was ended by SIGSEGV" in errors["40"]
    assert errors["42"] == "there is no such export"
    calls = folder.calls()
    tries = {length: calls.count(f"export tiny-none-p4-kv{length}") for length in lengths}
    assert tries == {16: 1, made.WORKER_DIES: 2, made.SEGFAULT: 1, made.REFUSED: 1, 17: 1}, "a lost worker is made good for once"
    assert (folder.out / "tiny-none-p4-kv16" / "parent").read_bytes().startswith(b"ray::")
    assert not list(folder.out.glob(".probe*"))
    cells_of(16, 17)
    assert not folder.run().failed and folder.calls() == [], "what a cluster did is done, also for this machine"


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_the_end_of_a_sweep_ends_what_is_at_work(ending, head, folder, cells_of):
    cells_of(made.SLOW)
    driver, at_work = head.start(folder), folder.out / "tiny-none-p4-kv47" / "pid"
    try:
        wait_for(lambda: at_work.exists() and at_work.read_text(), 60)
        driver.send_signal(ending)
        driver.communicate(timeout=60)
    finally:
        driver.kill()
        driver.communicate()
    wait_for(lambda: not is_running(int(at_work.read_text())))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "environment", "match"),
    [
        (
            "plan.Sweep.inputs = property(lambda sweep: [Path('/nowhere/model')])",
            {},
            r"node [\d.]+ does not see /nowhere/model: it must lie under the same path on all nodes",
        ),
        (
            "ray_cluster._versions = lambda: 'flatlm 9.9.9'",
            {},
            r"node [\d.]+ has flatlm .*, Python .*, and here is flatlm 9\.9\.9: install the same on all nodes",
        ),
        (
            "",
            {"RAY_AUTH_MODE": "disabled", "RAY_NUM_REDIS_GET_RETRIES": "1"},
            r"cannot be reached .*; it asks for a token: set RAY_AUTH_MODE=token",
        ),
    ],
    ids=["inputs", "version", "token"],
)
def test_what_is_not_as_it_should_be_is_said_before_any_work(before, environment, match, head, folder, cells_of):
    cells_of(16)
    error = head.sweep(folder, status=2, before=before, **environment)
    assert re.search(match, error) and error.startswith(f"flatlm sweep: --ray {head.address}: ")
    assert folder.calls() == [] and not list(folder.out.glob("*/*"))


def test_a_folder_that_is_not_shared_is_noticed(tmp_path):
    _, problem = ray_cluster._look_around(tmp_path / "elsewhere" / ".probe-1", "1", "node", [])
    assert problem == f"does not see {tmp_path / 'elsewhere'}: choose a folder that all nodes share, with -o"
    (tmp_path / ".probe-1").write_text("another sweep's")
    _, problem = ray_cluster._look_around(tmp_path / ".probe-1", "1", "node", [])
    assert problem is not None and "does not see" in problem


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("cluster", r"--ray cluster: use auto, local, HOST:PORT or ray://HOST:PORT"),
        ("ray://head:port", r"use auto, local"),
        ("127.0.0.1:{port}", r"--ray 127\.0\.0\.1:\d+: cannot be reached \(Connection refused\); is the cluster running there\?"),
        ("ray://127.0.0.1:{port}", r"cannot be reached \(Connection refused\)"),
    ],
)
def test_an_address_where_nobody_is(given, match, tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install 'flatlm[ray]'")
    with pytest.raises(SweepError, match=match):
        RayPool(given.format(port=free_port()), tmp_path).__enter__()


def test_without_ray_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SweepError, match=r"--ray needs Ray: pip install 'flatlm\[ray\]'"):
        RayPool("local", tmp_path).__enter__()
