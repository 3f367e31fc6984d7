"""A command that is run in this process gives what it gives in one of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flatlm.commands import recipes
from tests.command_line import run_here
from tests.docs_blocks import ROOT

MODEL = "flatlm/assets/demo_model"


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["check", MODEL, "--json"], 0, None),
        (["check", "nowhere"], 2, None),
        (["check"], 2, None),
        (["chat", "--max-new-tokens", "x"], 2, "Hello\n"),
        (["no-verb"], 2, None),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else None,
)
def test_it_is_what_a_process_gives(arguments: list[str], status: int, told: str | None) -> None:
    command = [sys.executable, "-m", "flatlm.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, input=told, capture_output=True, text=True, check=False)
    here = run_here(arguments, folder=ROOT, told=told)
    assert (here.returncode, here.stdout, here.stderr) == (done.returncode, done.stdout, done.stderr)
    assert done.returncode == status


def held() -> int:
    """Files that this process has open, where /proc tells."""
    place = Path("/proc/self/fd")
    return len(list(place.iterdir())) if place.exists() else 0


def test_libraries_are_heard_and_all_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    """What is written past Python's streams counts, and so does what a command is told."""

    def run(args: object) -> int:
        print(sys.stdin.read(), Path.cwd())
        os.write(1, b"from below\n")
        os.write(2, b"noise\n")
        print("from above", file=sys.stderr)
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "run", run)
    before = Path.cwd(), sys.stdin, sys.stdout, sys.stderr, held()
    done = run_here(["recipes"], folder=tmp_path, told="a line")
    assert (Path.cwd(), sys.stdin, sys.stdout, sys.stderr, held()) == before
    assert done.returncode == 130
    assert sorted(done.stdout.splitlines()) == sorted([f"a line {tmp_path}", "from below"])
    assert sorted(done.stderr.splitlines()) == ["flatlm recipes: interrupted", "from above", "noise"]
    assert capfd.readouterr() == ("", "")
