"""Measuring on a board behind a real sshd, and all the ways in which it goes wrong."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from flatlm.errors import RuntimeFileError, TargetError
from flatlm.generative.benchmarking.record import BenchmarkRequest
from flatlm.generative.targets.open import open_target
from flatlm.generative.targets.probe import Probe
from flatlm.generative.targets.ssh import _CLEAR, SshTarget, _parsed
from tests.generative.targets.board import Board, running_board
from tests.generative.toy_model import S


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    with running_board(tmp_path_factory.mktemp("board")) as board:
        yield board


@pytest.fixture
def target(board: Board) -> SshTarget:
    return board.target(sys.executable)


@pytest.fixture
def request_(tiny_file) -> BenchmarkRequest:
    return BenchmarkRequest(tiny_file, prefill=8, decode=4, runs=2, warmup=0, threads=1)


def test_the_same_record(board, request_, tiny_file):
    target = open_target(board.name, ssh_options=board.options, remote_python=sys.executable)
    seen = []
    record = target.benchmark(request_, lambda *step: seen.append(step))
    assert (record.target, record.file, record.file_bytes) == (board.name, "tiny.tflite", tiny_file.stat().st_size)
    assert record.machine.runtime.startswith("ai-edge-litert 2.")
    for measure in (record.prefill_tokens_per_second, record.decode_tokens_per_second, record.time_to_first_token_s, record.load_s):
        assert measure.median > 0
    assert record.load_s.runs == 3
    assert 10e6 < record.peak_rss_bytes < 200e6
    assert seen[0] == ("copy", tiny_file.stat().st_size, tiny_file.stat().st_size)
    board.require_clean()


def test_a_bundle_is_copied_once_for_several_settings(board, target, request_, tiny_file, tmp_path, monkeypatch):
    from flatlm.convert.bundle import BundleMetadata, TokenizerSource, write_bundle

    monkeypatch.setattr("flatlm.generative.benchmarking.measure.LOADS", 1)
    path = tmp_path / "it's a bundle.litertlm"
    write_bundle(path, model=tiny_file, tokenizer=TokenizerSource("hf", b"{}"), metadata=BundleMetadata(max_num_tokens=S))
    seen = []
    with target:
        for threads in (1, 2):
            record = target.benchmark(replace(request_, file=path, threads=threads), lambda *step: seen.append(step))
            assert (record.file, record.file_bytes, record.threads) == (path.name, path.stat().st_size, threads)
            assert [file.suffix for folder in board.temporary.iterdir() for file in folder.iterdir()].count(".tflite") == 1
    assert [step for step in seen if step[0] == "copy"] == [("copy", tiny_file.stat().st_size, tiny_file.stat().st_size)]
    board.require_clean()


def once(stage, action):
    """A progress callback that acts at the first step of a stage."""
    done = []

    def progress(*step):
        if step[0] == stage and not done:
            done.append(True)
            action()

    return progress


@pytest.mark.parametrize("stage", ["copy", "benchmark"])
def test_a_board_that_goes_away(board, target, request_, stage):
    with pytest.raises(TargetError, match=f"^{board.name} went away in the middle of it.*: see that it runs"):
        target.benchmark(request_, once(stage, lambda: board.signal_sessions(signal.SIGKILL)))
    board.require_clean()


def test_a_board_that_is_silent(board, request_):
    """The line is cut without a word: its end there does not notice. What still runs is ended as soon as it is reached again."""
    target = board.target(sys.executable, "ServerAliveInterval=1", "ServerAliveCountMax=1")
    stopped = []

    def cut():
        stopped.extend(board.sessions())
        board.signal_sessions(signal.SIGSTOP)

    try:
        with pytest.raises(TargetError, match=f"^{board.name} went away in the middle of it"):
            target.benchmark(request_, once("benchmark", cut))
        assert stopped
        board.require_clean()
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)


def test_a_worker_that_is_killed_there(board, target, request_):
    def kill():
        for pid in board.workers():
            if Path(f"/proc/{pid}/exe").resolve() == Path(sys.executable).resolve():
                os.kill(pid, signal.SIGKILL)

    with pytest.raises(
        TargetError, match=f"^{board.name}: the process that measures there was ended by SIGKILL, perhaps for want of memory$"
    ):
        target.benchmark(request_, once("benchmark", kill))
    board.require_clean()


def test_ctrl_c(board, target, request_):
    def interrupt():
        assert board.workers()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        target.benchmark(request_, once("benchmark", interrupt))
    board.require_clean()


def test_a_killed_flatlm_leaves_nothing(board, tiny_file):
    options = [word for option in board.options for word in ("--ssh-option", option)]
    command = [sys.executable, "-m", "flatlm.cli", "benchmark", str(tiny_file), "--target", board.name, "--remote-python", sys.executable]
    command += [*options, "--runs", "100000", "--threads", "1"]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3]) as client:
        for _ in range(400):
            if board.workers():
                break
            time.sleep(0.05)
        assert board.workers() and list(board.temporary.iterdir())
        client.kill()
    board.require_clean()


def test_a_file_that_cannot_run_is_named_as_here(board, target, request_, tmp_path, tiny_file):
    with pytest.raises(RuntimeFileError, match=f"^{request_.file}: --prefill {S} and"):
        target.benchmark(replace(request_, prefill=S))
    board.require_clean()
    path = tmp_path / "no.tflite"
    path.write_bytes(b"no model at all")
    with pytest.raises(RuntimeFileError, match=r"no\.tflite is not a TFLite model"):
        SshTarget("ssh://nowhere.invalid").benchmark(BenchmarkRequest(path))


def test_too_little_space(board, target, request_, tiny_file, tmp_path):
    path = tmp_path / "large.tflite"
    path.write_bytes(tiny_file.read_bytes())
    os.truncate(path, 8 << 40)  # nothing but holes: it takes no room here
    with pytest.raises(TargetError, match=f"^{board.name}: large.tflite needs 8,796,093.* MB there, and .* has .* MB: free some space"):
        target.benchmark(replace(request_, file=path))
    board.require_clean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["Port=1"], "Connection refused; is its ssh server running"),
        (["IdentityFile=/dev/null"], "Permission denied.*ssh-copy-id"),
        (["UserKnownHostsFile=/dev/null"], "Host key verification failed.*log in once by hand"),
    ],
)
def test_refused(board, request_, options, message):
    name = board.name.rpartition(":")[0] if options == ["Port=1"] else board.name
    rest = [] if "Identity" in options[0] else board.options
    target = SshTarget(name, options=[*options, *(rest or [*board.options[1:]])], python=sys.executable)
    with pytest.raises(TargetError, match=f"^{name} cannot be reached: .*{message}"):
        target.benchmark(request_)


def test_a_host_that_is_not_there(request_):
    with pytest.raises(TargetError, match=r"^ssh://nowhere.invalid cannot be reached: .*check the host's name$"):
        SshTarget("ssh://nowhere.invalid").benchmark(request_)


def test_no_python_there(board, request_):
    with pytest.raises(TargetError, match=f"^{board.name} has no /nowhere/python: install Python 3.11"):
        board.target("/nowhere/python").benchmark(request_)


def test_no_runtime_there(board, request_, tmp_path):
    bare = tmp_path / "python without packages"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(TargetError, match=f"^{board.name}: its {bare} has no ai-edge-litert. There: python3 -m venv flatlm &&"):
        board.target(str(bare)).benchmark(request_)


GOOD = Probe((3, 11), "aarch64", "2.3.0", "", (("/var/tmp", 50), ("/tmp", 200)))


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (replace(GOOD, python=(3, 9)), "^pi: its python3 is Python 3.9, and 3.11 is the least"),
        (replace(GOOD, python=(2, 7), runtime=""), "Python 2.7"),
        (replace(GOOD, machine="armv7l", runtime=""), "^pi: its processor is armv7l; ai-edge-litert is built for x86_64 and aarch64"),
        (replace(GOOD, runtime="1.4.0"), "^pi: its ai-edge-litert is 1.4.0, and 2.3 is the least"),
        (replace(GOOD, problem="GLIBC_2.99\nnot found"), "^pi: ai-edge-litert 2.3.0 cannot be imported there: GLIBC_2.99 not found"),
    ],
)
def test_boards_that_are_not_fit(probe, message):
    with pytest.raises(TargetError, match=message):
        probe.require_fit("pi", "python3")


@pytest.mark.parametrize("changes", [{}, {"python": (3, 14)}, {"runtime": "2.10.0rc1"}, {"machine": "riscv64"}])
def test_boards_that_are(changes):
    replace(GOOD, **changes).require_fit("pi", "python3")


def test_where_the_file_goes():
    assert GOOD.place_for(50, "pi", "x") == "/var/tmp"
    assert GOOD.place_for(51, "pi", "x") == "/tmp"
    with pytest.raises(TargetError, match=r"^pi: x needs 300.0 MB there, and /tmp has 0.0 MB"):
        GOOD.place_for(300_000_000, "pi", "x")
    with pytest.raises(TargetError, match=r"any folder has 0.0 MB"):
        replace(GOOD, places=()).place_for(1, "pi", "x")


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("ssh://pi", ("pi", None)),
        ("ssh://Pi.Local:2222", ("Pi.Local", 2222)),
        ("ssh://pi:022", ("pi", 22)),
        ("ssh://pi:", ("pi", None)),
        ("ssh://me@10.0.0.7", ("me@10.0.0.7", None)),
        ("ssh://me@[fe80::1]:22", ("me@fe80::1", 22)),
    ],
)
def test_names(name, parsed):
    assert _parsed(name) == parsed


@pytest.mark.parametrize(
    "name",
    [
        "ssh:",
        "ssh://",
        "ssh:pi",
        "ssh://pi/tmp",
        "ssh://me:secret@pi",
        "ssh://pi:port",
        "ssh://-oProxyCommand=x",
        "ssh://me@-oProxyCommand=x",
        "ssh://a b",
    ],
)
def test_no_names(name):
    with pytest.raises(TargetError, match="is not of the form ssh://"):
        open_target(name)


@pytest.mark.parametrize("said", [b"", b"/usr", b"/usr\n", b"\n"])
def test_nothing_is_cleared_for_a_name_that_came_in_part(said, tmp_path):
    """The line may break again in the middle of the name."""
    script = _CLEAR.replace("kill -9", "echo kill").replace("rm -rf", "echo remove")
    done = subprocess.run(["sh", "-c", script], input=said, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    folder = tmp_path / "flatlm.abcdefgh"
    whole = subprocess.run(["sh", "-c", script], input=f"{folder}\n".encode(), capture_output=True, check=True)
    assert whole.stdout.decode() == f"remove {folder}\n"
