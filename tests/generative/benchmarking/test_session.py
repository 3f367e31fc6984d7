"""A worker process and its client: what they measure, how each notices that the other is gone."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from flatlm.errors import RuntimeFileError, TargetError
from flatlm.generative.benchmarking import worker as module
from flatlm.generative.benchmarking.session import WORKER, Session, Transport, local_transport
from tests.generative.toy_model import S, V


def test_a_session(tiny_file, capfd):
    with Session(local_transport(tiny_file)) as session:
        opened = session.open(threads=1)
        assert (opened.cache_length, opened.vocab_size, opened.threads, opened.prefill_lengths) == (S, V, 1, (4, 16))
        assert 0 < opened.load_s < 60
        for depth in (0, 5, 5, 0, 20):
            times = session.run(depth=depth, prefill=16, decode=4)
            assert min(times.prefill_s, times.first_s, times.decode_s) > 0
        with pytest.raises(RuntimeFileError, match=f"tiny.tflite: {S + 2} tokens do not fit its context of {S}"):
            session.run(prefill=S, decode=1)
        session.run(prefill=4, decode=1)
        closed = session.close()
    # This process has torch in it, and more memory than that.
    assert 10e6 < closed.peak_rss_bytes < 200e6
    assert closed.machine.runtime.startswith("ai-edge-litert ")
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_no_model(tmp_path):
    path = tmp_path / "no.tflite"
    path.write_bytes(b"no model at all")
    transport = replace(local_transport(path), shown="the user's own path")
    with Session(transport) as session, pytest.raises(RuntimeFileError, match=r"^the user's own path is not a TFLite model"):
        session.open()


def test_a_run_before_it_is_open(tiny_file):
    with Session(local_transport(tiny_file)) as session, pytest.raises(RuntimeFileError, match="before a file was opened"):
        session.run(prefill=1, decode=1)


class Slow:
    """A runner on a clock of its own."""

    cache_length, vocab_size, threads, prefill_lengths, most_rewound = 100, 10, 2, (4,), 20

    def __init__(self):
        self.now = 0.0
        self.position = 0
        self.calls = []

    def reset(self):
        self.position = 0
        self.calls.append("reset")

    def require_room(self, count):
        assert count <= self.cache_length

    def can_rewind(self, position):
        return position <= self.position <= position + self.most_rewound

    def rewind(self, position):
        self.position = position

    def prefill(self, ids):
        self.position += len(ids)
        self.now += len(ids) * 0.5
        self.calls.append(len(ids))

    def step(self, token):
        self.position += 1
        self.now += 2.0


def test_times_of_the_parts(monkeypatch):
    """The prompt; the step after it; the other steps. Filling the context is not in it, and is done once while it can be kept."""
    slow = Slow()
    monkeypatch.setattr(module.Runner, "open", lambda *args, **kwargs: slow)
    work = module.Worker(clock=lambda: slow.now)
    assert work.answer({"open": {"file": "x.tflite", "threads": None, "weight_cache": True}})["load_s"] == 0
    for depth in (0, 30, 30):
        times = work.answer({"run": {"depth": depth, "prefill": 8, "decode": 4}})
        assert times == {"prefill_s": 4.0, "first_s": 2.0, "decode_s": 8.0, "energy_j": None}
        assert slow.position == depth + 8 + 1 + 4
    assert slow.calls == ["reset", 0, 8, "reset", 30, 8, 8]
    work.answer({"run": {"depth": 30, "prefill": 18, "decode": 4}})
    slow.calls.clear()
    work.answer({"run": {"depth": 30, "prefill": 8, "decode": 4}})
    assert slow.calls == ["reset", 30, 8], "23 tokens back is further than its rings allow"


def running(session):
    return session._process.poll() is None


def test_a_killed_worker_is_told(tiny_file):
    with Session(local_transport(tiny_file)) as session:
        session.open(threads=1)
        session._process.kill()
        with pytest.raises(
            RuntimeFileError, match=r"tiny\.tflite: the process that measures it was ended by SIGKILL, perhaps for want of memory$"
        ):
            session.run(prefill=4, decode=4)
    assert not running(session)


def transport_of(code: str) -> Transport:
    """A worker of another kind."""
    return Transport((sys.executable, "-c", code), "m", "m", lambda how, line: TargetError(f"pi: it {how}: {line}"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('no such thing')", "pi: it ended with code 1: no such thing$"),
        ("import sys; sys.exit(137)", "pi: it was ended by SIGKILL, perhaps for want of memory"),
        ("import sys; sys.exit(255)", "pi: it ended with code 255"),
        ("print('Welcome to pi!')", "pi: it ended with code 0"),
    ],
)
def test_a_worker_that_ends_by_itself(code, message):
    with Session(transport_of(code)) as session, pytest.raises(TargetError, match=message):
        session.open()


def test_a_worker_that_is_silent():
    silent = Session(transport_of("import time; time.sleep(60)"), answer_s=0.2)
    with silent as session, pytest.raises(TargetError, match="gave no answer in 0 s"):
        session.open()
    assert not running(session)


def test_an_error_here_ends_the_worker(tiny_file):
    with pytest.raises(KeyboardInterrupt), Session(local_transport(tiny_file)) as session:
        session.open(threads=1)
        raise KeyboardInterrupt
    assert not running(session)


def test_a_worker_ends_in_the_middle_of_a_run_when_nobody_listens(tiny_file):
    """Its stdin ends while it runs; so it does when the process that started it is killed."""
    transport = local_transport(tiny_file)
    pipe, far = os.pipe()
    with subprocess.Popen(transport.command, stdin=pipe, stdout=subprocess.PIPE, env=transport.environment) as process:
        os.close(pipe)
        requests = [{"open": {"file": str(tiny_file), "threads": 1, "weight_cache": True}}]
        requests += [{"run": {"depth": 0, "prefill": 16, "decode": 31}}] * 100_000
        os.write(far, json.dumps(requests[0]).encode() + b"\n")
        assert b"load_s" in process.stdout.readline()
        for request in requests[1:300]:
            os.write(far, json.dumps(request).encode() + b"\n")
        assert b"prefill_s" in process.stdout.readline()
        os.close(far)
        answered = len(process.communicate(timeout=30)[0].splitlines())
    assert process.returncode == 0
    assert answered < 298


def test_a_killed_client_leaves_no_worker(tiny_file):
    """The real thing: a Python that has a session open is killed."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from flatlm.generative.benchmarking.session import *\n"
        "session = Session(local_transport(Path(sys.argv[1]))); session.open(threads=1)\n"
        "print(session._process.pid, flush=True); time.sleep(60)"
    )
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", code, str(tiny_file)], stdout=subprocess.PIPE, text=True, cwd=root) as client:
        worker = int(client.stdout.readline())
        os.kill(worker, 0)
        client.send_signal(signal.SIGKILL)
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2]:
            return
        time.sleep(0.05)
    pytest.fail(f"worker {worker} is still there")


def test_a_silent_client_is_given_up(tiny_file, monkeypatch):
    code = f"import {WORKER} as worker; worker.IDLE_S = 0.1; worker.main()"
    transport = local_transport(tiny_file)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, env=transport.environment) as process:
        assert process.wait(30) == 0


def test_the_worker_imports_no_torch():
    code = f"import sys, {WORKER}; print({{'torch', 'transformers', 'ai_edge_litert'}} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=Path(__file__).parents[3], text=True) == "set()\n"
