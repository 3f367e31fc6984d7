"""The processes of a comparison's subjects: all open at once, ended and started anew, and what they told at their ends."""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from flatlm.generative.benchmarking.session import Closed, Opened, Session, Transport

_NUMBER = re.compile(r"\d[\d,.]*")


class Processes:
    """One process for each subject. Use as a context manager: at its end all are gone, whatever happened."""

    def __init__(self, transports: Sequence[Transport], threads: int) -> None:
        """Starts none yet."""
        self._transports = transports
        self._threads = threads
        self._stack = ExitStack()
        self.sessions: dict[int, Session] = {}
        """By the subject's index; empty where none are open."""
        self.opened: list[list[Opened]] = [[] for _ in transports]
        """For each subject, what each of its processes told when it was started."""
        self.closed: list[list[Closed]] = [[] for _ in transports]
        """The same of their ends."""

    def start(self, order: Sequence[int]) -> None:
        """Opens all files, in that order of subjects. Raises RuntimeFileError where one cannot be run."""
        for index in order:
            self.sessions[index] = session = self._stack.enter_context(Session(self._transports[index]))
            self.opened[index].append(session.open(threads=self._threads))

    def end(self) -> None:
        """Hears what they have to tell, and ends them."""
        for index, session in self.sessions.items():
            self.closed[index].append(session.close())
        self.sessions.clear()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()


def noise(name: str, ends: Sequence[Closed]) -> list[str]:
    """One clause for what a subject's processes saw run beside them; in how many of them it was, and its worst."""
    seen: dict[str, list[str]] = {}
    for reason in (reason for end in ends for reason in end.noise):
        seen.setdefault(_NUMBER.sub("", reason), []).append(reason)
    parts = [
        max(reasons, key=_largest) + (f" ({len(reasons)} of its {len(ends)} processes; the worst)" if len(ends) > 1 else "")
        for reasons in seen.values()
    ]
    return [f"while {name} ran, {'; '.join(parts)}"] if parts else []


def _largest(reason: str) -> float:
    return max((float(number.strip(",.").replace(",", "")) for number in _NUMBER.findall(reason)), default=0.0)
