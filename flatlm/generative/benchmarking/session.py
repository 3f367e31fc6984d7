"""Talks to a worker process (`worker.py`), here or on another machine: whatever command starts it, its stdin and stdout are the line."""

import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flatlm.errors import FlatlmError, RuntimeFileError
from flatlm.generative.benchmarking.record import Machine
from flatlm.generative.own_processes import ending_of, environment_of_our_own

WORKER = "flatlm.generative.benchmarking.worker"
ANSWER_S = 3600.0
"""The longest wait for one answer."""
_FAREWELL_S = 5.0


@dataclass(frozen=True)
class Transport:
    """How a worker is started."""

    command: tuple[str, ...]
    file: str
    """The model's path where the worker runs."""
    shown: str
    """The path that errors name."""
    lost: Callable[[str, str], FlatlmError]
    """The error for a worker that ended by itself: of how (`was ended by SIGKILL`) and the last line that it wrote on stderr."""
    environment: Mapping[str, str] | None = None


def local_transport(file: Path) -> Transport:
    """On this machine, in this Python."""

    def lost(how: str, line: str) -> RuntimeFileError:
        return RuntimeFileError(f"{file}: the process that measures it {how}{line and f': {line}'}")

    return Transport((sys.executable, "-P", "-m", WORKER), str(file), str(file), lost, environment_of_our_own())


@dataclass(frozen=True)
class Opened:
    """A loaded file, as the worker sees it."""

    load_s: float
    """Opening the file, its weights packed anew, the runtime imported."""
    cache_length: int
    vocab_size: int
    threads: int
    prefill_lengths: tuple[int, ...]


@dataclass(frozen=True)
class RunTimes:
    """One run: seconds of the prompt, of the step that gives the answer's first token, of the steps after it."""

    prefill_s: float
    first_s: float
    decode_s: float
    energy_j: float | None
    """Joules of the steps in `decode_s`, where the machine tells."""


@dataclass(frozen=True)
class Closed:
    """What the worker knows at its end."""

    peak_rss_bytes: int
    noise: tuple[str, ...]
    machine: Machine


class Session:
    """One worker, one file. Use as a context manager: at its end the process is gone, whatever happened."""

    def __init__(self, transport: Transport, *, answer_s: float = ANSWER_S) -> None:
        """Starts the worker. `answer_s`: the longest wait for one answer."""
        self._transport = transport
        self._answer_s = answer_s
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            transport.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=None if transport.environment is None else dict(transport.environment),
            start_new_session=True,  # Ctrl-C is for this process alone: it ends the worker
        )
        self._answers: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def open(self, *, threads: int | None = None, weight_cache: bool = True) -> Opened:
        """Loads the file. RuntimeFileError where it cannot be run; the transport's error where the worker is lost."""
        reply = self._ask("open", file=self._transport.file, threads=threads, weight_cache=weight_cache)
        return Opened(**reply | {"prefill_lengths": tuple(reply["prefill_lengths"])})

    def run(self, *, depth: int = 0, prefill: int, decode: int) -> RunTimes:
        """Reads `prefill` tokens behind `depth` others, then a first step, then `decode` more. The same errors."""
        return RunTimes(**self._ask("run", depth=depth, prefill=prefill, decode=decode))

    def close(self) -> Closed:
        """Ends the worker."""
        reply = self._ask("close")
        return Closed(reply["peak_rss_bytes"], tuple(reply["noise"]), Machine(**reply["machine"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._hang_up()
        self._said.close()

    def _ask(self, name: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin
        with suppress(OSError):  # where it is gone, there will be no answer
            self._process.stdin.write(json.dumps({name: arguments}).encode() + b"\n")
            self._process.stdin.flush()
        try:
            line = self._answers.get(timeout=self._answer_s)
            reply: dict[str, Any] = json.loads(line)
        except queue.Empty:
            self._process.kill()
            raise self._transport.lost(f"gave no answer in {self._answer_s:,.0f} s", "") from None
        except ValueError:
            self._hang_up()
            raise self._transport.lost(ending_of(self._process.returncode), self._last_line()) from None
        if "error" in reply:
            raise RuntimeFileError(reply["error"].replace(self._transport.file, self._transport.shown))
        return reply

    def _listen(self) -> None:
        """Passes answers on, and not what a remote shell may say before them; after the last, an empty one."""
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith(b"{"):
                self._answers.put(line)
        self._answers.put(b"")

    def _hang_up(self) -> None:
        """A worker ends when its stdin does; one that does not is killed."""
        assert self._process.stdin
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_FAREWELL_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _last_line(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""
