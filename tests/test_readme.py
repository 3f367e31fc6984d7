"""The README is true: its commands run and print what it shows (numbers aside), its Python runs, its tables are the code's own."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tools.update_docs import README, updated

ROOT = README.parent
TEXT = README.read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
# What depends on the processor (sampled text, speed) is run, and not compared.
NOT_COMPARED = ("flatlm generate", "flatlm benchmark")
# A search takes minutes: tests/generative/test_tune.py makes a real one.
NOT_RUN = ("flatlm tune",)


def shape(text: str) -> list[str]:
    """The text's lines with every number masked, and the white space that columns need."""
    masked = re.sub(r"\d[\d.,]*(e[-+]?\d+)?", "#", text)
    masked = re.sub(r"^# s \(.*\)$", "# s (stages)", masked, flags=re.MULTILINE)  # stages that took no time are left out
    return [re.sub(r"\s+", " ", line).strip() for line in masked.strip().splitlines()]


def test_tables_are_up_to_date() -> None:
    assert updated(TEXT) == TEXT, "run python tools/update_docs.py"


@pytest.mark.slow
def test_the_tour(tmp_path: Path) -> None:
    (tmp_path / "flatlm").symlink_to(ROOT / "flatlm")
    compared = 0
    for language, block in BLOCKS:
        if language == "console":
            command, _, expected = block.removeprefix("$ ").partition("\n")
            arguments = shlex.split(command)
            assert arguments[0] == "flatlm"
            if command.startswith(NOT_RUN):
                continue
            done = subprocess.run(
                [sys.executable, "-m", "flatlm.cli", *arguments[1:]], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            printed = done.stdout + done.stderr
            assert done.returncode == (2 if "nowhere" in command else 0), printed
            if not command.startswith(NOT_COMPARED):
                shown = shape(expected)
                if shown[-1] == "...":
                    assert shape(printed)[: len(shown) - 1] == shown[:-1]
                else:
                    assert shape(printed) == shown
                compared += 1
        elif language == "python":
            done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip()
    assert compared >= 4
