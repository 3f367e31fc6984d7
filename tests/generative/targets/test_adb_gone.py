"""Devices that go away in the middle, and benchmarks that do: nothing stays behind."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from flatlm.errors import TargetError
from flatlm.generative.targets import adb_device
from tests.generative.targets.conftest import measure, wait_for


@pytest.fixture
def quick(monkeypatch):
    """A device that stays away is not waited for long."""
    monkeypatch.setattr(adb_device, "_RETURN_S", 2.0)
    monkeypatch.setattr(adb_device, "_CLEAN_S", 3.0)


@contextmanager
def when(condition, act):
    """Acts once it holds, beside the test."""

    def run():
        wait_for(condition)
        act()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_a_connection_that_breaks_while_a_file_is_copied(phone, request_of, tmp_path, quick):
    big = tmp_path / "big"
    big.write_bytes(request_of.runner.read_bytes() + b"#" * 3_000_000)
    phone.break_after = 1_000_000
    with pytest.raises(TargetError, match=r"went away while big was copied to it: .*; it came back, and nothing was left") as caught:
        measure(phone, request_of, runner=big)
    assert "\n" not in str(caught.value)
    assert phone.directories() == []


def test_a_connection_that_breaks_while_it_measures(phone, request_of, quick):
    phone.set_mood("hang")
    message = r"^127\S+ went away in the middle; it came back, and nothing was left running or lying there$"
    with when(phone.started, phone.disconnect), pytest.raises(TargetError, match=message):
        measure(phone, request_of)
    assert phone.directories() == []
    assert phone.running() == []


def test_a_device_that_goes_away_for_good(phone, request_of, quick):
    phone.set_mood("hang")

    def leave():
        phone.away = True
        phone.disconnect()

    message = r"^127\S+ went away in the middle.*; to be sure: adb -s 127\S+ shell rm -rf /data/local/tmp/flatlm-\w{12}$"
    with when(phone.started, leave), pytest.raises(TargetError, match=message):
        measure(phone, request_of)
    wait_for(lambda: not phone.directories() and not phone.running())  # the device did it by itself


def test_a_device_that_falls_silent(phone, request_of, quick, monkeypatch):
    """As out of reach of the Wi-Fi: the connection stands, and nothing comes. The device ends its part when it notices."""
    monkeypatch.setattr(adb_device, "_SILENCE_S", 0.5)
    monkeypatch.setattr(adb_device.Device, "answers", lambda self: False)
    phone.set_mood("hang")
    with pytest.raises(TargetError, match="went away: it has not answered for"):
        measure(phone, request_of)
    wait_for(lambda: not phone.directories() and not phone.running())


_SCRIPT = """
import sys
from pathlib import Path
from flatlm.generative.benchmarking.record import BenchmarkRequest
from flatlm.generative.targets.adb import AdbTarget
request = BenchmarkRequest(Path(sys.argv[2]), prefill=16, decode=8, runs=1, runner=Path(sys.argv[3]))
AdbTarget(sys.argv[1]).benchmark(request)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_benchmark_leaves_nothing(phone, request_of, number):
    """Even when this side has no chance to clean up: the device notices that its input ends."""
    phone.set_mood("hang")
    command = [sys.executable, "-c", _SCRIPT, f"adb:{phone.serial}", str(request_of.file), str(request_of.runner)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        wait_for(phone.started, 60)
        assert len(phone.directories()) == 1
        assert phone.running()
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does: its adb clients get it too
        else:
            process.kill()
        try:
            process.communicate(timeout=60)
        finally:
            process.kill()  # a test that was started with interrupts ignored, as by `&` in a script, fails and does not hang
    wait_for(lambda: not phone.directories() and not phone.running())
