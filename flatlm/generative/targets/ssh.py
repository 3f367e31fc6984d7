"""A board behind ssh: a Raspberry Pi, any Linux machine with Python and `pip install ai-edge-litert`.

The system's own ssh is used, with the user's configuration and keys; it never asks. One connection keeps a fresh folder there for as
long as it stands: when its stdin ends, on purpose or because the line is cut, the shell behind it removes the folder. The runner and
the model are copied into it, and workers run from it, each in a connection of its own, and end when their stdin does. So nothing
stays, whichever end goes away.
"""

import contextlib
import json
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from urllib.parse import urlsplit

from flatlm.errors import TargetError
from flatlm.generative.benchmarking.measure import check_request, measure
from flatlm.generative.benchmarking.package import RUNNER_NAME, runner_zip
from flatlm.generative.benchmarking.record import BenchmarkRecord, BenchmarkRequest
from flatlm.generative.benchmarking.session import Transport
from flatlm.generative.model_file import ModelFile, read_model_file
from flatlm.generative.targets.local import refuse_runner
from flatlm.generative.targets.probe import PROBE, Probe
from flatlm.progress import Progress

_OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=5", "ServerAliveCountMax=3", "LogLevel=ERROR")
"""A line that is cut is noticed after 15 s. What the user's options say comes first, and so prevails."""
_LOST = 255
"""ssh's own exit status where there is no connection, or no longer."""
_CHUNK = 1 << 20
_FAREWELL_S = 15.0
_KEEP = """
d=$(mktemp -d "$1/flatlm.XXXXXXXX") || exit 1
trap 'rm -rf "$d"' EXIT
trap 'exit 1' HUP INT TERM PIPE
echo "flatlm: $d"
cat > /dev/null
"""
# After a cut: whatever still runs from the folder, and the folder. Its name comes by stdin, so that this shell's own line lacks it; a name
# of which the line's end has come too soon must not be taken for one.
_CLEAR = r"""
read -r d || exit 1
case "$d" in */flatlm.????????) ;; *) exit 1 ;; esac
for p in /proc/[0-9]*; do
  case "$(tr '\0' ' ' 2> /dev/null < "$p/cmdline")" in *"$d/"*) kill -9 "${p#/proc/}" ;; esac
done
rm -rf "$d"
"""
_RECEIVE = """
import json, sys
source = sys.stdin.buffer
try:
    for path, size in json.loads(source.readline()):
        with open(path, "wb") as file:
            while size and (chunk := source.read(min(size, 1 << 20))):
                size -= file.write(chunk)
    print(json.dumps({"missing": size}))
except OSError as error:
    print(json.dumps({"error": error.strerror}))
"""


class SshTarget:
    """`ssh://[user@]host[:port]`. As a context manager it keeps what it copied there for several benchmarks of one file."""

    def __init__(self, name: str, *, options: Sequence[str] = (), python: str = "python3") -> None:
        """`options`: settings as in ssh_config, such as `Port=2222`. `python`: the interpreter there."""
        self.name = name
        destination, port = _parsed(name)
        settings = [word for option in (*options, *_OPTIONS) for word in ("-o", option)]
        self._ssh = ("ssh", "-T", *(("-p", str(port)) if port else ()), *settings, destination)
        self._python = python
        self._kept: contextlib.ExitStack | None = None
        self._folders: dict[Path, str] = {}

    def __enter__(self) -> Self:
        self._kept = contextlib.ExitStack()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._folders.clear()
        kept, self._kept = self._kept, None
        if kept:
            kept.__exit__(kind, error, trace)

    def benchmark(self, request: BenchmarkRequest, progress: Progress | None = None) -> BenchmarkRecord:
        refuse_runner(self.name, request)
        check_request(request)
        with contextlib.ExitStack() as own:
            stack = self._kept or own
            folder = self._folders.get(request.file)
            if folder is None:
                folder = stack.enter_context(self._copied(read_model_file(request.file), progress))
                if self._kept:
                    self._folders[request.file] = folder
            return measure(self._transport(request.file, folder), request, self.name, progress)

    @contextlib.contextmanager
    def _copied(self, file: ModelFile, progress: Progress | None) -> Iterator[str]:
        """A folder there with the runner and the model in it; gone afterwards."""
        runner = runner_zip()
        probe = self._probe()
        place = probe.place_for(len(runner) + file.size, self.name, file.path.name)
        with self._folder(place) as folder:
            self._copy(file, runner, folder, progress)
            yield folder

    def _transport(self, file: Path, folder: str) -> Transport:
        def lost(how: str, line: str) -> TargetError:
            if how == f"ended with code {_LOST}":
                return self._gone(line)
            detail = "" if line in ("", "Killed") else f": {line}"  # a shell's word for what `how` says already
            return TargetError(f"{self.name}: the process that measures there {how}{detail}")

        # Not replaced by the interpreter, the shell tells which signal ended it: ssh itself would only say 255.
        script = f"{shlex.quote(self._python)} {shlex.quote(f'{folder}/{RUNNER_NAME}')}; exit $?"
        return Transport(self._command(script), _model_path(folder, file), str(file), lost)

    def _command(self, script: str, *arguments: str) -> tuple[str, ...]:
        """A shell script there, whatever the user's own shell is."""
        return (*self._ssh, shlex.join(["exec", "sh", "-c", script, "sh", *arguments]))

    def _probe(self) -> Probe:
        with self._started(f'exec "$1" -c {shlex.quote(PROBE)}', self._python) as (process, said):
            out = process.communicate()[0].decode(errors="replace")
            answer = next((line for line in out.splitlines() if line.startswith("{")), "")
            if process.returncode in (126, 127):
                raise TargetError(f"{self.name} has no {self._python}: install Python 3.11 or later there, or give --remote-python PATH")
            if process.returncode or not answer:
                raise self._refusal(process.returncode, said)
        probe = Probe.from_json(answer)
        probe.require_fit(self.name, self._python)
        return probe

    @contextlib.contextmanager
    def _folder(self, place: str) -> Iterator[str]:
        """A fresh folder, for as long as this connection stands."""
        with self._started(_KEEP, place) as (process, said):
            assert process.stdin and process.stdout
            prefix = b"flatlm: "
            line = next((line for line in process.stdout if line.startswith(prefix)), b"")
            if not line:
                raise self._failure(process.wait(), said)
            folder = line.removeprefix(prefix).decode().rstrip("\n")
            try:
                yield folder
            finally:
                with contextlib.suppress(OSError):
                    process.stdin.close()
                if not _ended_well(process):
                    self._clear(folder)

    def _clear(self, folder: str) -> None:
        """The connection broke, and with it should have gone what was there. Make sure, where it can be reached again."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired), self._started(_CLEAR) as (process, _):
            process.communicate(f"{folder}\n".encode(), _FAREWELL_S)

    def _copy(self, file: ModelFile, runner: bytes, folder: str, progress: Progress | None) -> None:
        parts = [[f"{folder}/{RUNNER_NAME}", len(runner)], [_model_path(folder, file.path), file.size]]
        with self._started(f'exec "$1" -c {shlex.quote(_RECEIVE)}', self._python) as (process, said):
            assert process.stdin
            with contextlib.suppress(BrokenPipeError):  # the answer says why
                process.stdin.write(json.dumps(parts).encode() + b"\n" + runner)
                for done in _send(file, process.stdin):
                    if progress:
                        progress("copy", done, file.size)
            out = process.communicate()[0]
            answer = next((json.loads(line) for line in out.splitlines() if line.startswith(b"{")), None)
            if answer is None:
                raise self._failure(process.returncode, said)
            if "error" in answer:
                raise TargetError(f"{self.name}: {file.path.name} cannot be copied to {folder} ({answer['error']}): free some space there")
            if answer["missing"]:
                raise TargetError(f"{file.path} became shorter while it was copied to {self.name}: measure again")

    @contextlib.contextmanager
    def _started(self, script: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
        """A script there with its stdin and stdout, and a file that holds its stderr. It is gone afterwards."""
        with tempfile.TemporaryFile() as said:
            pipe = subprocess.PIPE
            try:
                process = subprocess.Popen(self._command(script, *arguments), stdin=pipe, stdout=pipe, stderr=said, start_new_session=True)
            except FileNotFoundError as error:
                raise TargetError(f"{self.name} cannot be reached, since there is no ssh here: install OpenSSH's client") from error
            try:
                yield process, said
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
                for stream in (process.stdin, process.stdout):
                    with contextlib.suppress(OSError):
                        assert stream
                        stream.close()

    def _refusal(self, code: int, said: IO[bytes]) -> TargetError:
        """The first command there failed: what ssh or the shell wrote, and what to do."""
        text = _written(said)
        if code != _LOST:
            return self._failure(code, said)
        hint = next((hint for part, hint in _HINTS.items() if part in text), "does ssh alone reach it?")
        return TargetError(f"{self.name} cannot be reached: {_last_line(text) or 'ssh does not say why'}; {hint}")

    def _failure(self, code: int, said: IO[bytes]) -> TargetError:
        """A later one failed."""
        line = _last_line(_written(said))
        return self._gone(line) if code == _LOST else TargetError(f"{self.name}: {line or f'a command ended with code {code}'}")

    def _gone(self, line: str) -> TargetError:
        detail = f" ({line})" if line else ""
        return TargetError(f"{self.name} went away in the middle of it{detail}: see that it runs and is connected, then measure again")


_HINTS = {
    "Permission denied": "let this machine in by a key: ssh-copy-id",
    "Host key verification failed": "log in once by hand, and accept its key",
    "Could not resolve": "check the host's name",
    "Connection refused": "is its ssh server running, and on that port?",
    "timed out": "is it switched on, and in the same network?",
}


def _parsed(name: str) -> tuple[str, int | None]:
    """The destination as ssh takes it, and the port. TargetError for what is no such name."""
    form = "ssh://[user@]host[:port]"
    try:
        parts = urlsplit(name)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise TargetError(f"{name!r} is not of the form {form}: {error}") from error
    if not host or parts.path or parts.query or parts.fragment or parts.password is not None:
        raise TargetError(f"{name!r} is not of the form {form}")
    host = re.sub(r":\d*$", "", parts.netloc.rpartition("@")[2]).strip("[]")  # as it was written: aliases know upper case
    user = f"{parts.username}@" if parts.username else ""
    if host.startswith("-") or user.startswith("-") or any(char.isspace() for char in name):
        raise TargetError(f"{name!r} is not of the form {form}: no user or host begins with a dash or has spaces")
    return f"{user}{host}", port


def _model_path(folder: str, file: Path) -> str:
    """A bundle's model travels without the bundle."""
    return f"{folder}/{file.stem}.tflite"


def _send(file: ModelFile, pipe: IO[bytes]) -> Iterator[int]:
    """Writes the model's bytes; after each piece, how many."""
    with file.path.open("rb") as source:
        source.seek(file.offset)
        done = 0
        while done < file.size and (chunk := source.read(min(_CHUNK, file.size - done))):
            pipe.write(chunk)
            done += len(chunk)
            yield done


def _ended_well(process: subprocess.Popen[bytes]) -> bool:
    try:
        return process.wait(_FAREWELL_S) == 0
    except subprocess.TimeoutExpired:
        return False


def _written(said: IO[bytes]) -> str:
    said.seek(0)
    return said.read().decode(errors="replace").strip()


def _last_line(text: str) -> str:
    return text.splitlines()[-1].strip() if text else ""
