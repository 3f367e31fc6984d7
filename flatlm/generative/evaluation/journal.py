"""What a long evaluation has found so far, on disk: killed at any time, it goes on after the last whole window."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Self

import numpy as np

from flatlm.generative.evaluation.locked_folder import lock
from flatlm.generative.evaluation.scores import TOKEN, Tokens
from flatlm.generative.memory import cache_directory

ABANDONED_S = 30 * 24 * 3600.0


def journal_directory() -> Path:
    """Where evaluations that are not finished are kept unless the user says otherwise."""
    return cache_directory() / "evaluations"


@contextmanager
def work_folder(directory: Path, key: str) -> Iterator[Path | None]:
    """A folder for what a long run saves as it goes: it goes when the run has finished, and stays where that was ended before.

    None where another process is at the very same run. Raises OutputError where it cannot be written.
    """
    folder, lock = _open(directory, key, "lock")
    if lock is None:
        yield None
        return
    with lock:
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


class Journal:
    """The windows' tokens, one window after the other. Without a file, nothing is kept."""

    def __init__(self, folder: Path | None = None, tokens: IO[bytes] | None = None) -> None:
        """Use `Journal.open`."""
        self.folder = folder
        self._file = tokens

    @classmethod
    def open(cls, directory: Path, key: str) -> Self:
        """Where another process is at the very same evaluation, one that keeps nothing. Raises OutputError where it cannot be written."""
        folder, file = _open(directory, key, "tokens")
        return cls() if file is None else cls(folder, file)

    def read(self, counts: list[int]) -> list[Tokens]:
        """The first windows' tokens, given each window's number of them: as many as are whole. What follows is dropped."""
        if self._file is None:
            return []
        self._file.seek(0)
        found = np.frombuffer(self._file.read(), np.uint8)
        tokens = found[: len(found) // TOKEN.itemsize * TOKEN.itemsize].view(TOKEN)
        windows, end = list[Tokens](), 0
        for count in counts:
            if end + count > len(tokens):
                break
            windows.append(tokens[end : end + count])
            end += count
        self._file.truncate(end * TOKEN.itemsize)
        return windows

    def append(self, tokens: Tokens) -> None:
        """A window's. A full disk is not an error: the rest is then not kept."""
        if self._file is not None:
            try:
                self._file.write(tokens.tobytes())
                self._file.flush()
            except OSError:
                self.close()

    def close(self, *, finished: bool = False) -> None:
        """`finished`: it is not needed any more."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        self._file = None
        if finished and self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _open(directory: Path, key: str, name: str) -> tuple[Path, IO[bytes] | None]:
    """The folder of a run, and the file in it that this process has locked; None where another one has."""
    folder = directory / key
    file = lock(folder, name, way_out="choose another --work folder")
    _forget(directory)
    return folder, file


def _forget(directory: Path) -> None:
    """Remove evaluations that nobody has gone on with for a month."""
    for folder in directory.iterdir():
        if (folder / "tokens").exists() and time.time() - (folder / "tokens").stat().st_mtime > ABANDONED_S:
            shutil.rmtree(folder, ignore_errors=True)
