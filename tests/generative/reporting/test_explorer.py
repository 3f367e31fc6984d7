"""Model Explorer's own server on a real file."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest

from flatlm.errors import OutputError
from flatlm.generative.reporting import explorer
from flatlm.generative.reporting.explorer import explore, model_of


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_bundle_is_served_until_interrupted(demo_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("model_explorer", reason="needs ai-edge-model-explorer")
    port = free_port()
    command = [sys.executable, "-m", "flatlm.cli", "inspect", str(demo_bundle), "--explorer", "--no-browser", "--port", str(port)]
    environment = os.environ | {"TMPDIR": str(tmp_path), "NO_PROXY": "*", "PYTHONUNBUFFERED": "1"}
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a shell's background jobs are not
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, preexec_fn=heeded)
    try:
        page = wait_for(f"http://127.0.0.1:{port}/", server)
        assert b"Model Explorer" in page
        said = said_until("Ctrl+C", server)  # until then, Model Explorer does not heed it
        (copy,) = tmp_path.rglob("demo.tflite")
        assert copy.read_bytes()[4:8] == b"TFL3"
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
            raise
    assert f"127.0.0.1:{port}" in said and "demo.tflite" in said
    assert server.returncode in (0, 130)
    assert not list(tmp_path.rglob("demo.tflite")), "the copy is gone"


def wait_for(address: str, server: "subprocess.Popen[str]") -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(240):
        try:
            with opener.open(address, timeout=5) as answer:
                return bytes(answer.read())
        except OSError:
            assert server.poll() is None, server.stdout.read() if server.stdout else ""
            time.sleep(0.5)
    raise AssertionError(f"{address} did not answer")


def said_until(word: str, server: "subprocess.Popen[str]") -> str:
    said = ""
    for line in server.stdout or ():
        said += line
        if word in line:
            return said
    raise AssertionError(f"ended without {word!r}: {said}")


def test_a_file_by_itself_is_not_copied(tiny_file: Path) -> None:
    with model_of(tiny_file) as path:
        assert path == tiny_file


def test_a_taken_port_is_said(tiny_file: Path) -> None:
    pytest.importorskip("model_explorer", reason="needs ai-edge-model-explorer")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OutputError, match=r"port \d+ is taken: give a free one with --port"):
            explore(tiny_file, port=taken.getsockname()[1], open_browser=False)


def test_without_it_the_way_out_is_said(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"pip install 'flatlm\[explorer\]'"):
        explore(tiny_file)
