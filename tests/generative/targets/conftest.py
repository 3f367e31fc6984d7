import os
import shutil
import socket
import subprocess
import time
from dataclasses import replace

import pytest

from flatlm.generative.benchmarking.record import BenchmarkRequest
from flatlm.generative.targets.adb import AdbTarget
from tests.generative.targets import programs
from tests.generative.targets.scripted_device import ScriptedDevice


def adb(*arguments):
    return subprocess.run(["adb", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False).stdout


def measure(phone, request, **changes):
    return AdbTarget(f"adb:{phone.serial}").benchmark(replace(request, **changes))


def wait_for(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


@pytest.fixture(scope="module")
def adb_server(tmp_path_factory):
    """A server of the tests' own, which knows no other device, with keys of its own."""
    if shutil.which("adb") is None:
        pytest.skip("adb is not installed")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("logs")))
        for name in ("ANDROID_SERIAL", "ADB_VENDOR_KEYS"):
            patch.delenv(name, raising=False)
        subprocess.run(["adb", "start-server"], stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=True)
        yield
        adb("kill-server")


@pytest.fixture
def connected(adb_server, tmp_path):
    """Makes devices that the server is connected to."""
    devices = []

    def make(**options):
        device = ScriptedDevice(tmp_path / f"device{len(devices)}", **options)
        devices.append(device)
        adb("connect", device.serial)
        return device

    yield make
    left = [line for device in devices for line in device.running()]
    for device in devices:
        adb("disconnect", device.serial)
        device.close()
        for process in device.shells:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
    assert not left, "left running on the device"


@pytest.fixture
def phone(connected):
    return connected()


@pytest.fixture
def request_of(tiny_file, tmp_path):
    """A small request with the program that TFLite files are measured with."""
    return BenchmarkRequest(tiny_file, prefill=16, decode=8, runs=3, threads=2, runner=programs.benchmark_model(tmp_path))
