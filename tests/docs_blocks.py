"""A page of documentation, executed: what it shows is what a reader gets.

Of its fenced blocks, ```python FILE.py and ```text FILE are files that the reader writes, ```python is a program, and ```console commands
of `flatlm` (`< FILE`: what they are told) with what they print, numbers aside; `...` stands for the rest of it. Others are only read.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.command_line import run_here

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```(\w+)(?: +(\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that it is meant to be (None: none), its text."""

    language: str
    file: str | None
    text: str

    @property
    def commands(self) -> list[tuple[str, str]]:
        """The commands of a console block, each with what it prints."""
        return _COMMAND.findall(self.text)


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    for language, file, body in _BLOCK.findall(text):
        yield Block(language, file or None, body)


def shape(text: str) -> list[str]:
    """The text's lines with every number masked, and the white space that columns need."""
    masked = re.sub(r"\d[\d.,]*(e[-+]?\d+)?", "#", text)
    masked = re.sub(r"^# s \(.*\)$", "# s (stages)", masked, flags=re.MULTILINE)  # stages that took no time are left out
    return [re.sub(r"\s+", " ", line).strip() for line in masked.strip().splitlines()]


def run_page(
    page: Path, folder: Path, *, not_run: Sequence[str] = (), not_compared: Sequence[str] = (), processes: Collection[str] = ()
) -> int:
    """Execute a page's blocks in `folder`, where `flatlm` is the package, as from the repository; returns how many outputs were compared.

    `not_run`, `not_compared`: beginnings of commands. A command that shows an error (`flatlm VERB: ...`) must end with status 2.
    `processes`: verbs whose first command on the page is a process of its own, as a reader's is; all others run in this one.
    """
    alone = set(processes)
    if not (folder / "flatlm").exists():
        (folder / "flatlm").symlink_to(ROOT / "flatlm")
    compared = 0
    for block in blocks(page.read_text("utf-8")):
        if block.language in ("python", "text") and block.file is not None:
            (folder / block.file).write_text(block.text, "utf-8")
        elif block.language == "python":
            done = _run([sys.executable, "-c", block.text], folder)
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip()
        elif block.language == "console":
            for command, expected in block.commands:
                if not command.startswith(tuple(not_run)):
                    verb = command.split()[1]
                    compare = not command.startswith(tuple(not_compared))
                    compared += _run_command(command, expected, folder, compare=compare, alone=verb in alone)
                    alone.discard(verb)
    return compared


def _run_command(command: str, expected: str, folder: Path, *, compare: bool, alone: bool) -> bool:
    program, *arguments = shlex.split(command)
    assert program == "flatlm", command
    told = None
    if "<" in arguments:
        *arguments, _, name = arguments
        told = (folder / name).read_text("utf-8")
    alone_command = [sys.executable, "-m", "flatlm.cli", *arguments]
    done = _run(alone_command, folder, told) if alone else run_here(arguments, folder=folder, told=told)
    printed = done.stdout + done.stderr
    assert done.returncode == (2 if re.search(r"^flatlm \w+: ", expected, re.MULTILINE) else 0), printed
    if compare:
        shown, got = shape(expected), shape(printed)
        if shown[-1] == "...":
            assert got[: len(shown) - 1] == shown[:-1]
        else:
            assert got == shown
    return compare


def _run(command: list[str], folder: Path, told: str | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=folder, input=told, capture_output=True, text=True, check=False)
