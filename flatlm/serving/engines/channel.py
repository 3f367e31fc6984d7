"""Messages between the server and an engine's process: pickled, each with its length before it.

Both ends are this program on this machine, over a pipe that nobody else has.
"""

import asyncio
import os
import pickle
import select
import struct
from typing import Any

_LENGTH = struct.Struct("<Q")
_READ = 1 << 16


def pack(message: object) -> bytes:
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


async def read_message(reader: asyncio.StreamReader) -> Any:
    """The next message. asyncio.IncompleteReadError, or another OSError, where the other side has ended."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return pickle.loads(await reader.readexactly(length))


class Line:
    """The engine's end of it: blocking, for one thread."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        """Of two descriptors."""
        self._incoming, self._outgoing = incoming, outgoing
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(incoming, select.POLLIN)

    @classmethod
    def over_standard_streams(cls) -> "Line":
        """Over stdin and stdout, which are this line's alone from now on: whatever else prints goes to stderr."""
        line = cls(os.dup(0), os.dup(1))
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        return line

    def receive(self, *, wait: bool) -> list[Any] | None:
        """The messages that are there; with `wait`, at least one. None at the line's end."""
        while True:
            if not wait and not self._poll.poll(0):
                return []
            if not (data := os.read(self._incoming, _READ)):
                return None
            self._buffer += data
            if (messages := self._take()) or not wait:
                return messages

    def send(self, message: object) -> None:
        """Raises BrokenPipeError where nobody listens any more."""
        data = memoryview(pack(message))
        while data:
            data = data[os.write(self._outgoing, data) :]

    def _take(self) -> list[Any]:
        messages = []
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                break
            messages.append(pickle.loads(self._buffer[_LENGTH.size : end]))
            del self._buffer[:end]
        return messages
