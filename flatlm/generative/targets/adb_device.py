"""A device behind `adb`: found, asked, given files; and a directory on it that never outlives the benchmark.

Everything goes through the `adb` client on PATH and the server it starts (`ANDROID_ADB_SERVER_PORT` says where, as always).
A command's exit code is written after its output, since the client may end with 0 when a device goes away (29.0.6 does).
"""

import os
import re
import shutil
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from flatlm.errors import TargetError
from flatlm.generative.targets.benchmark_output import last_line

ROOT = "/data/local/tmp"
"""Where an Android device lets the shell's user write, and run what was written."""
_EXIT = "flatlm-exit"
_ANSWER_S = 60.0
_SILENCE_S = 60.0
"""A device that wrote nothing for so long is asked whether it is still there: over Wi-Fi, nobody else would notice."""
_RETURN_S = 15.0
"""How long a device that went away is waited for, to clean up on it."""
_CLEAN_S = 20.0

_FACTS = f"""
echo "model=$(getprop ro.product.manufacturer) $(getprop ro.product.model)"
echo "soc=$(getprop ro.soc.manufacturer) $(getprop ro.soc.model)"
echo "board=$(getprop ro.board.platform)"
echo "abis=$(getprop ro.product.cpu.abilist),$(getprop ro.product.cpu.abi)"
echo "release=$(getprop ro.build.version.release)"
echo "kernel=$(uname -r)"
echo "architecture=$(uname -m)"
echo "cores=$(grep -c ^processor /proc/cpuinfo)"
echo "memory=$(grep MemTotal /proc/meminfo)"
echo "heat=$(dumpsys thermalservice 2>/dev/null | grep -m 1 'Thermal Status')"
echo "saver=$(settings get global low_power 2>/dev/null)"
echo "space=$(df -kP {ROOT} 2>/dev/null | tail -n 1)"
"""

_STATES = {
    "unauthorized": "confirm `Allow USB debugging` on its screen",
    "authorizing": "confirm `Allow USB debugging` on its screen",
    "offline": "reconnect its cable, or `adb reconnect`",
    "connecting": "wait a moment, and try again",
    "no permissions": "let your user reach USB devices, with udev rules (Debian: package android-sdk-platform-tools-common)",
}


class DeviceGoneError(TargetError):
    """The device does not answer any more."""


@dataclass(frozen=True)
class Device:
    """One that answers. Its methods raise DeviceGoneError when it stops to."""

    adb: str
    serial: str

    @classmethod
    def find(cls, serial: str | None) -> "Device":
        """The device of that serial, or the only one there is. Raises TargetError with the way out."""
        adb = _client()
        _adb(adb, "start-server")
        listed = dict(line.split("\t", 1) for line in _adb(adb, "devices").splitlines() if "\t" in line)  # names may have blanks
        seen = ", ".join(f"{name} ({state})" for name, state in listed.items()) or "none"
        if serial is None:
            if not listed:
                raise TargetError("adb sees no device: switch on USB debugging and plug the phone in, or `adb connect HOST:PORT`")
            if len(listed) > 1:
                raise TargetError(f"adb sees several devices, {seen}: name one, as in adb:{next(iter(listed))}")
            serial = next(iter(listed))
        if serial not in listed:
            way = f"`adb connect {serial}`" if ":" in serial else "plug it in, with USB debugging switched on"
            raise TargetError(f"adb does not see {serial}: {way}; it sees: {seen}")
        if (state := listed[serial]) != "device":
            known = next((way for name, way in _STATES.items() if state.startswith(name)), "start Android on it")
            raise TargetError(f"{serial} is {state.split(' (')[0]}: {known}")
        return cls(adb, serial)

    def shell(self, command: str, *, timeout: float | None = _ANSWER_S) -> tuple[int, str]:
        """The command's exit code, and what it wrote. No timeout: as long as the device is there."""
        process = self._start("shell", f"{command}\ncode=$?; echo; echo {_EXIT} $code")
        output = self._finish(process, timeout)
        text, found, code = output.rpartition(f"\n{_EXIT} ")
        if not found:
            last = last_line(output)  # the client's own word, or just where the command was
            raise DeviceGoneError(f"{self.serial} went away in the middle" + (f" ({last})" if last.startswith(("error:", "adb:")) else ""))
        return int(code.split()[0]), text

    def facts(self) -> Mapping[str, str]:
        """What is known of it, by key; an empty string where it does not tell."""
        lines = self.shell(_FACTS)[1].splitlines()
        return {key: " ".join(value.split()) for key, _, value in (line.partition("=") for line in lines)}

    def push(self, local: Path, remote: str, progress: Callable[[int], None] | None = None) -> None:
        """Copies a file; `progress` is told, each second, how many bytes are there."""
        process = self._start("push", str(local), remote)

        def tell() -> None:
            if progress is not None:
                with suppress(TargetError, ValueError):
                    progress(int(self.shell(f"stat -c %s {quote(remote)}", timeout=10)[1]))

        output = self._finish(process, None, tell)
        if process.returncode:
            cause = next((line for line in output.splitlines() if "error" in line), last_line(output)).removeprefix("adb: error: ")
            if _LOST.search(output) or not self.answers():
                raise DeviceGoneError(f"{self.serial} went away while {local.name} was copied to it: {cause}")
            raise TargetError(f"{local.name} cannot be copied to {self.serial}: {cause}")

    def answers(self) -> bool:
        try:
            return self.shell("true", timeout=15)[0] == 0
        except DeviceGoneError:
            return False

    @contextmanager
    def workspace(self) -> Iterator[str]:
        """A fresh directory on the device. At its end, whatever runs in it is ended, and it is removed.

        A shell on the device does that, as soon as its input ends: when this process closes it, when this process dies,
        and when the connection breaks. A DeviceGoneError inside becomes a TargetError that says what became of the directory.
        """
        path = f"{ROOT}/flatlm-{uuid.uuid4().hex[:12]}"
        keeper = self._start("shell", _keeper(path), stdin=subprocess.PIPE)
        try:
            first = _first_line(keeper)
            if first != _READY:
                raise TargetError(f"{self.serial}: {path} cannot be made: {first or 'it does not answer'}")
            yield path
        except DeviceGoneError as error:
            if self._clean(keeper, path):
                raise TargetError(f"{error}; it came back, and nothing was left running or lying there") from error
            raise TargetError(
                f"{error}; the benchmark there ends by itself when the connection breaks, and removes {path}; "
                f"to be sure: adb -s {self.serial} shell rm -rf {path}"
            ) from error
        except BaseException:
            self._clean(keeper, path)
            raise
        else:
            if not self._clean(keeper, path):
                raise TargetError(f"{self.serial} went away before {path} was removed: adb -s {self.serial} shell rm -rf {path}")
        finally:
            keeper.kill()
            keeper.wait()

    def _clean(self, keeper: "subprocess.Popen[str]", path: str) -> bool:
        """Whether the directory, and all that ran in it, is known to be gone."""
        with suppress(subprocess.TimeoutExpired, ValueError, OSError):
            output, _ = keeper.communicate(timeout=_CLEAN_S)
            if _CLEAN in output:
                return True
        with suppress(DeviceGoneError):
            if self._comes_back():
                return _CLEAN in self.shell(f"{_cleaning(path)}\nclean\n{_TELL}", timeout=_CLEAN_S)[1]
        return False

    def _comes_back(self) -> bool:
        if ":" in self.serial:
            with suppress(TargetError):
                _adb(self.adb, "connect", self.serial, timeout=_RETURN_S)
        with suppress(TargetError):
            _adb(self.adb, "-s", self.serial, "wait-for-device", timeout=_RETURN_S)
            return self.answers()
        return False

    def _start(self, *arguments: str, stdin: int = subprocess.DEVNULL) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [self.adb, "-s", self.serial, *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def _finish(self, process: "subprocess.Popen[str]", timeout: float | None, each_second: Callable[[], None] | None = None) -> str:
        """What it wrote. Without a timeout a silent device is asked, now and then, whether it is still there."""
        silent = 0.0
        step = timeout or (1.0 if each_second else _SILENCE_S)
        try:
            while True:
                try:
                    return process.communicate(timeout=step)[0]
                except subprocess.TimeoutExpired:
                    silent += step
                    if timeout is not None or (silent >= _SILENCE_S and not self.answers()):
                        raise DeviceGoneError(f"{self.serial} went away: it has not answered for {silent:.0f} s") from None
                    silent %= _SILENCE_S
                    if each_second is not None:
                        each_second()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


_LOST = re.compile(
    r"device .*not found|device offline|no devices|EOF|closed|Broken pipe|reset by peer|protocol fault|(read|write) .*device"
)
_READY = "flatlm-ready"
_CLEAN = "flatlm-clean"


def _cleaning(path: str) -> str:
    """Shell code: a function that ends what has its working directory there, and removes it."""
    return f"""d={path}
clean() {{
  for p in $(ls -l /proc/[0-9]*/cwd | sed -n "s|.* /proc/\\([0-9]*\\)/cwd -> $d.*|\\1|p"); do kill -9 $p; done
  rm -rf $d || {{ sleep 1; rm -rf $d; }}
}} >/dev/null 2>&1"""


_TELL = f"[ -e $d ] || echo {_CLEAN}"


def _keeper(path: str) -> str:
    return f"{_cleaning(path)}\ntrap 'clean; exit' HUP INT TERM\nmkdir $d || exit 1\necho {_READY}\ncat >/dev/null\nclean\n{_TELL}"


def _first_line(process: "subprocess.Popen[str]") -> str:
    """Empty where none comes."""
    assert process.stdout is not None
    patience = threading.Timer(_ANSWER_S, process.kill)
    patience.start()
    try:
        return process.stdout.readline().strip()
    finally:
        patience.cancel()


def _client() -> str:
    found = shutil.which("adb")
    for variable in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        if found is None and (home := os.environ.get(variable)):
            found = shutil.which("adb", path=str(Path(home) / "platform-tools"))
    if found is None:
        raise TargetError("adb is not installed: `apt install adb`, or Android's SDK Platform-Tools, and put it on PATH")
    return found


def _adb(adb: str, *arguments: str, timeout: float = 30.0) -> str:
    """What a command of the client itself wrote. Raises TargetError."""
    command = [adb, *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise TargetError(f"adb {' '.join(arguments)} did not end in {timeout:.0f} s: `adb kill-server`, and try again") from None
    if done.returncode:
        raise TargetError(f"adb {' '.join(arguments)} failed: {last_line(done.stdout + done.stderr)}")
    return done.stdout
