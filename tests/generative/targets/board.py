"""A machine behind ssh: a real sshd on a loopback port, with keys made for it. Its folder for temporary files is one of the test's."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from flatlm.generative.targets.ssh import SshTarget

SSHD = shutil.which("sshd", path=os.pathsep.join(["/usr/sbin", "/usr/local/sbin", os.environ.get("PATH", "")]))


class Board:
    """One sshd and what it started."""

    def __init__(self, folder: Path, port: int) -> None:
        self.name = f"ssh://{getpass.getuser()}@127.0.0.1:{port}"
        self.temporary = folder / "remote_tmp"
        self.temporary.mkdir()
        self.options = [
            f"IdentityFile={folder}/key",
            "IdentitiesOnly=yes",
            f"UserKnownHostsFile={folder}/known_hosts",
            "StrictHostKeyChecking=yes",
        ]
        for key in ("key", "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host_key\nPidFile none\nAuthorizedKeysFile {folder}/key.pub\n"
            f"StrictModes no\nUsePAM no\nPasswordAuthentication no\nSetEnv TMPDIR={self.temporary}\n"
        )
        self.log = (folder / "log").open("w+")
        self.sshd = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=self.log)
        for _ in range(100):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            if self.sshd.poll() is not None:
                break
            time.sleep(0.05)
        self.log.seek(0)
        self.stop()
        pytest.skip(f"sshd cannot be started here: {self.log.read()}")

    def target(self, python: str, *options: str) -> SshTarget:
        return SshTarget(self.name, options=[*options, *self.options], python=python)

    def sessions(self) -> list[int]:
        """Sshd's processes for the connections that stand."""
        return [pid for pid in _descendants(self.sshd.pid) if "sshd" in _command_line(pid)]

    def signal_sessions(self, number: signal.Signals) -> None:
        for pid in self.sessions():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def workers(self) -> list[int]:
        """Processes that run from the folder for temporary files."""
        pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
        return [pid for pid in pids if f"{self.temporary}/flatlm." in _command_line(pid)]

    def require_clean(self) -> None:
        """Within some seconds there is no process and no file left."""
        left: list[object] = []
        for _ in range(200):
            left = [*self.workers(), *self.temporary.iterdir()]
            if not left:
                return
            time.sleep(0.05)
        pytest.fail(f"left there: {[_command_line(item) if isinstance(item, int) else item for item in left]}")

    def stop(self) -> None:
        for pid in [*self.sessions(), *self.workers()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.sshd.terminate()
        self.sshd.wait()


@contextmanager
def running_board(folder: Path) -> Iterator[Board]:
    """Skips the test where there is no sshd."""
    if not SSHD or not shutil.which("ssh-keygen"):
        pytest.skip("needs sshd and ssh-keygen: Debian's openssh-server and openssh-client")
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("needs Linux's /proc")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it, as root
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    board = Board(folder, port)
    try:
        yield board
    finally:
        board.stop()
        board.log.close()


def _command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _descendants(pid: int) -> list[int]:
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, waiting = [], [pid]
    while waiting:
        parent = waiting.pop()
        children = [child for child, its_parent in parents.items() if its_parent == parent]
        found += children
        waiting += children
    return found
