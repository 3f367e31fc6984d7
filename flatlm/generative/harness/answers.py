"""Answers that a file gave to an evaluation's requests, kept on disk as they come: a run that was ended goes on where it was."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flatlm.errors import OutputError
from flatlm.utilities.digests import digest_of, file_digest


class Answers:
    """A file of answers by request; each is on disk when `add` returns, and survives the end of the process."""

    def __init__(self, path: Path) -> None:
        """Open or begin it. Raises OutputError."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{path.parent} cannot be made, to save answers in it: {error.strerror}") from error
        with self._errors():
            self._database = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID")

    def get(self, request: str) -> Any:
        """The answer to a request (`request_key`), a JSON value; None where there is none."""
        with self._errors():
            row = self._database.execute("SELECT answer FROM answers WHERE request = ?", (request,)).fetchone()
        return None if row is None else json.loads(row[0])

    def add(self, request: str, answer: Any) -> None:
        with self._errors():
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (request, json.dumps(answer)))

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OutputError(f"{self.path}: answers cannot be saved there ({error}); free space, or remove the file") from error


def request_key(method: str, arguments: Sequence[Any]) -> str:
    """What tells a request from all others."""
    return digest_of([method, *arguments])


def content_key(paths: Sequence[Path], settings: str) -> str:
    """Of the content of files, and of settings: answers that another file or tokenizer gave are never taken for this one's."""
    return digest_of([settings, *map(file_digest, paths)])[:24]
