"""Commands of `flatlm` in this process, which has its libraries loaded and shares what was compiled; a shell would see the same."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryFile
from typing import IO

import pytest

from flatlm.cli import main


def run_here(arguments: Sequence[object], *, folder: Path | None = None, told: str | None = None) -> "CompletedProcess[str]":
    """A command line of `flatlm`, run in `folder`: its status, and what it, its libraries included, writes. `told`: its standard input."""
    given = list(map(str, arguments))
    with ExitStack() as stack:
        streams = [stack.enter_context(TemporaryFile("w+", encoding="utf-8")) for _ in range(3)]
        streams[0].write(told or "")
        streams[0].seek(0)
        with pytest.MonkeyPatch.context() as patch:
            if folder is not None:
                patch.chdir(folder)
            with _standing_for_the_terminal(streams, patch):
                try:
                    status = main(given)
                except SystemExit as leaving:
                    status = leaving.code if isinstance(leaving.code, int) else 1
        for stream in streams:
            stream.seek(0)
        return CompletedProcess(["flatlm", *given], status, streams[1].read(), streams[2].read())


@contextmanager
def _standing_for_the_terminal(streams: Sequence[IO[str]], patch: pytest.MonkeyPatch) -> Iterator[None]:
    """The three streams, by their numbers too: libraries in C++ know no other name."""
    names = ("stdin", "stdout", "stderr")
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in range(3)]
    try:
        for number, (name, stream) in enumerate(zip(names, streams, strict=True)):
            os.dup2(stream.fileno(), number)
            patch.setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, handle in enumerate(kept):
            os.dup2(handle, number)
            os.close(handle)
