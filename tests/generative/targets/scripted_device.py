"""The device end of adb, for tests: what a phone's adbd says over TCP, around a real shell in a folder that plays the phone.

The real `adb` client connects to it. It knows the packets (CNXN, AUTH, OPEN, OKAY, WRTE, CLSE), the services `shell` (with and without
the shell protocol, which carries stderr and the exit code) and `sync` (STAT and SEND), and does what adbd does when the connection
breaks: it hangs up on every shell, and closes its input. Commands run in /bin/sh, in earnest: /data/local/tmp in them is a folder of the
test's, and what Android has and Linux has not (getprop, dumpsys, settings) is a script on their PATH.
"""

import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

CNXN, AUTH, OPEN, OKAY, WRTE, CLSE = (int.from_bytes(name, "little") for name in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"WRTE", b"CLSE"))
VERSION, MAX_PAYLOAD = 0x01000001, 256 * 1024
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
PLACE = "/data/local/tmp"

PROPERTIES = {
    "ro.product.manufacturer": "Acme",
    "ro.product.model": "Phone 9",
    "ro.soc.manufacturer": "Acme",
    "ro.soc.model": "A9",
    "ro.product.cpu.abilist": "arm64-v8a,armeabi-v7a",
    "ro.product.cpu.abi": "arm64-v8a",
    "ro.build.version.release": "15",
}


class ScriptedDevice:
    """Listens on a free port of the loopback until closed."""

    def __init__(self, folder: Path, *, features: str = "shell_v2", trusted: bool = True) -> None:
        self.tmp, self._bin = folder / "tmp", folder / "bin"
        self.tmp.mkdir(parents=True)
        self._bin.mkdir()
        self._features, self._trusted = features, trusted
        self.properties = dict(PROPERTIES)
        self.commands: list[str] = []
        self.shells: list[subprocess.Popen[bytes]] = []
        self.break_after: int | None = None
        """The connection breaks when so many bytes more of a file have come."""
        self.away = False
        """It answers no new connection."""
        for name, answer in (("getprop", ""), ("dumpsys", "Thermal Status: 0"), ("settings", "0")):
            self.script(name, f"echo '{answer}'")
        self._write_properties()
        self._connections: list[Connection] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def script(self, name: str, code: str) -> None:
        """A command that the device has."""
        path = self._bin / name
        path.write_text(f"#!/bin/sh\n{code}\n")
        path.chmod(0o755)

    def set_property(self, name: str, value: str) -> None:
        self.properties[name] = value
        self._write_properties()

    def _write_properties(self) -> None:
        cases = "".join(f"  {name}) echo '{value}';;\n" for name, value in self.properties.items())
        self.script("getprop", f'case "$1" in\n{cases}esac')

    def set_mood(self, word: str) -> None:
        """How the programs of programs.py behave."""
        (self.tmp / "mood").write_text(word)

    def started(self) -> bool:
        """Whether a program in the mood to hang has begun to."""
        return (self.tmp / "started").exists()

    def calls(self) -> list[list[str]]:
        """The arguments of each run of those programs."""
        return [line.split() for line in (self.tmp / "calls").read_text().splitlines()]

    def directories(self) -> list[str]:
        """What benchmarks have there."""
        return [path.name for path in self.tmp.glob("flatlm-*")]

    def disconnect(self) -> None:
        """As when the cable is pulled."""
        for connection in self._connections:
            connection.end()
        self._connections.clear()

    def close(self) -> None:
        self.away = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.disconnect()
        self._thread.join(10)

    def running(self) -> list[str]:
        """Command lines of all that works in its folder."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if str((process / "cwd").readlink()).startswith(str(self.tmp)):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def inside(self, text: str) -> str:
        return text.replace(PLACE, str(self.tmp))

    def environment(self) -> dict[str, str]:
        return {"PATH": f"{self._bin}:{os.environ['PATH']}", "DEVICE": str(self.tmp)}

    def received(self, count: int) -> None:
        """Of a file's bytes. Raises ConnectionError where the test wants the connection to break."""
        if self.break_after is not None:
            self.break_after -= count
            if self.break_after <= 0:
                self.break_after = None
                raise ConnectionError("the test pulls the cable")

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            if self.away:
                peer.close()
                continue
            connection = Connection(self, peer, self._features, self._trusted)
            self._connections.append(connection)
            threading.Thread(target=connection.serve, daemon=True).start()


class Connection:
    """One client's. A packet is six little-endian words (command, two arguments, length, checksum, the command's complement), a payload."""

    def __init__(self, device: ScriptedDevice, peer: socket.socket, features: str, trusted: bool) -> None:
        self.device, self._peer, self._features, self._trusted = device, peer, features, trusted
        self._lock = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._next = 1

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                command, first, second, length, _, _ = struct.unpack("<6I", self._exactly(24))
                self._handle(command, first, second, self._exactly(length))
        self.end()

    def send(self, command: int, first: int, second: int, payload: bytes = b"") -> None:
        header = struct.pack("<6I", command, first, second, len(payload), sum(payload) & 0xFFFFFFFF, command ^ 0xFFFFFFFF)
        with self._lock:
            self._peer.sendall(header + payload)

    def end(self) -> None:
        with suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)
        self._peer.close()
        for stream in list(self._streams.values()):
            stream.hang_up()
        self._streams.clear()

    def _handle(self, command: int, first: int, second: int, payload: bytes) -> None:
        if command == CNXN or (command == AUTH and self._trusted):
            if not self._trusted:
                self.send(AUTH, 1, 0, bytes(20))  # a token to sign, and no signature is good enough
                return
            names = f"ro.product.name=phone;ro.product.model=Phone_9;ro.product.device=phone;features={self._features}"
            self.send(CNXN, VERSION, MAX_PAYLOAD, f"device::{names}".encode())
        elif command == AUTH:
            if first == 2:
                self.send(AUTH, 1, 0, bytes(20))
        elif command == OPEN:
            self._open(first, payload.rstrip(b"\0").decode())
        elif (stream := self._streams.get(second)) is None:
            if command == WRTE:
                self.send(CLSE, 0, first)
        elif command == WRTE:
            stream.feed(payload)
            self.send(OKAY, second, first)
        elif command == OKAY:
            stream.writable.set()
        elif command == CLSE:
            del self._streams[second]
            stream.hang_up()

    def _open(self, remote: int, service: str) -> None:
        number, self._next = self._next, self._next + 1
        kind, _, argument = service.partition(":")
        stream: Stream
        if kind.split(",")[0] == "shell":
            self.device.commands.append(argument)
            stream = Shell(self, number, remote, argument, packets="v2" in kind.split(","))
        elif kind == "sync":
            stream = Sync(self, number, remote)
        else:
            self.send(CLSE, 0, remote)
            return
        self._streams[number] = stream
        self.send(OKAY, number, remote)
        threading.Thread(target=stream.work, daemon=True).start()

    def _exactly(self, count: int) -> bytes:
        parts = []
        while count:
            part = self._peer.recv(count)
            if not part:
                raise ConnectionError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


class Stream:
    """One open service. `feed` is called with what the client writes; `work` runs in a thread."""

    def __init__(self, connection: Connection, number: int, remote: int) -> None:
        self.connection, self.number, self.remote = connection, number, remote
        self.writable = threading.Event()

    def write(self, payload: bytes) -> None:
        """One packet, then the client's OKAY."""
        self.writable.clear()
        self.connection.send(WRTE, self.number, self.remote, payload)
        if not self.writable.wait(30):
            raise ConnectionError

    def finish(self) -> None:
        self.connection.send(CLSE, self.number, self.remote)

    def feed(self, payload: bytes) -> None:
        raise NotImplementedError

    def work(self) -> None:
        pass

    def hang_up(self) -> None:
        self.writable.set()


class Shell(Stream):
    def __init__(self, connection: Connection, number: int, remote: int, command: str, *, packets: bool) -> None:
        super().__init__(connection, number, remote)
        device = connection.device
        self._packets, self._pending, self._outside = packets, b"", device.tmp
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", device.inside(command)],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe if packets else subprocess.STDOUT,
            env=device.environment(),
            cwd="/",
            start_new_session=True,
        )
        device.shells.append(self.process)

    def feed(self, payload: bytes) -> None:
        assert self.process.stdin is not None
        if not self._packets:
            self.process.stdin.write(payload)
            self.process.stdin.flush()
            return
        self._pending += payload
        while len(self._pending) >= 5 and len(self._pending) >= 5 + (length := int.from_bytes(self._pending[1:5], "little")):
            kind, content, self._pending = self._pending[0], self._pending[5 : 5 + length], self._pending[5 + length :]
            with suppress(OSError, ValueError):
                if kind == STDIN:
                    self.process.stdin.write(content)
                    self.process.stdin.flush()
                elif kind == CLOSE_STDIN:
                    self.process.stdin.close()

    def work(self) -> None:
        readers = [threading.Thread(target=self._pass_on, args=(STDOUT, self.process.stdout), daemon=True)]
        if self._packets:
            readers.append(threading.Thread(target=self._pass_on, args=(STDERR, self.process.stderr), daemon=True))
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        code = self.process.wait()
        with suppress(OSError):
            if self._packets:
                self.write(struct.pack("<BIB", EXIT, 1, code if code >= 0 else 128 - code))
            self.finish()

    _turn = threading.Lock()

    def _pass_on(self, kind: int, pipe: object) -> None:
        with suppress(OSError, ValueError):
            while content := os.read(pipe.fileno(), 4096):  # type: ignore[attr-defined]
                content = content.replace(str(self._outside).encode(), PLACE.encode())
                with self._turn:
                    self.write(struct.pack("<BI", kind, len(content)) + content if self._packets else content)

    def hang_up(self) -> None:
        super().hang_up()
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGHUP)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with suppress(OSError, ValueError):
                if pipe is not None:
                    pipe.close()


class Sync(Stream):
    """Files: requests of four letters, a length, and so many bytes."""

    def __init__(self, connection: Connection, number: int, remote: int) -> None:
        super().__init__(connection, number, remote)
        self._inbox: bytes = b""
        self._arrived = threading.Condition()
        self._ended = False

    def feed(self, payload: bytes) -> None:
        self.connection.device.received(len(payload))
        with self._arrived:
            self._inbox += payload
            self._arrived.notify()

    def hang_up(self) -> None:
        super().hang_up()
        with self._arrived:
            self._ended = True
            self._arrived.notify()

    def work(self) -> None:
        answers: dict[bytes, Callable[[str], None]] = {b"STAT": self._stat, b"SEND": self._receive}
        with suppress(OSError):
            while (request := self._take(8))[:4] != b"QUIT":
                answers[request[:4]](self.connection.device.inside(self._take(int.from_bytes(request[4:], "little")).decode()))
            self.finish()

    def _stat(self, path: str) -> None:
        try:
            found = Path(path).stat()
            words = (found.st_mode, found.st_size, int(found.st_mtime))
        except OSError:
            words = (0, 0, 0)
        self.write(b"STAT" + struct.pack("<3I", *words))

    def _receive(self, path_and_mode: str) -> None:
        path, _, mode = path_and_mode.rpartition(",")
        try:
            with Path(path).open("wb") as file:
                for part in self._parts():
                    file.write(part)
            Path(path).chmod(int(mode) & 0o777)
            self.write(b"OKAY" + bytes(4))
        except FileNotFoundError as error:
            message = f"couldn't create file: {error.strerror}".encode()
            self.write(b"FAIL" + len(message).to_bytes(4, "little") + message)

    def _parts(self) -> Iterator[bytes]:
        while (header := self._take(8))[:4] == b"DATA":
            yield self._take(int.from_bytes(header[4:], "little"))

    def _take(self, count: int) -> bytes:
        with self._arrived:
            while len(self._inbox) < count:
                if self._ended or not self._arrived.wait(30):
                    raise ConnectionError
            taken, self._inbox = self._inbox[:count], self._inbox[count:]
            return taken
