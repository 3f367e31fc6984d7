"""Verbs that talk, with a checkpoint and the file that says what it is: exported once, kept, talked to, and written ahead by a draft.

The export has a process of its own, which ends with theirs.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pexpect
import pytest

import flatlm
from tests.commands.test_serve import serving
from tests.examples.references import LLAMA_BASE, Case, make_reference
from tests.processes import children, ended, is_running, loads_torch
from tests.tasks.made import save_tokenizer

ROOT = Path(flatlm.__file__).parents[1]
WRITTEN = ROOT / "tests" / "authoring" / "compute_graph" / "custom" / "llama_written.py"


OPTIONS = ["--prefill", "4", "--recipe", "none", "--threads", "1"]


class Place(NamedTuple):
    checkpoint: Path
    cache: Path

    @property
    def exports(self) -> Path:
        return self.cache / "flatlm" / "exports"

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(self.cache), "TERM": "xterm"}

    def line(self, verb: str, *more: object, custom: Path = WRITTEN) -> list[str]:
        return [sys.executable, "-m", "flatlm.cli", verb, "-p", str(self.checkpoint), "--custom", str(custom), *OPTIONS, *map(str, more)]

    def terminal(self, *arguments: object, custom: Path = WRITTEN) -> pexpect.spawn:
        program, *line = self.line("chat", *arguments, custom=custom)
        return pexpect.spawn(program, line, env=self.environment, dimensions=(24, 200), encoding="utf-8", timeout=120)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    found = Place(tmp_path_factory.mktemp("made") / "checkpoint", tmp_path_factory.mktemp("cache"))
    make_reference(Case("mine", LLAMA_BASE), found.checkpoint)
    save_tokenizer(found.checkpoint)
    return found


def talk(place: Place, *more: object) -> "subprocess.CompletedProcess[str]":
    typed = "/params ignore_eos true\nthe cat\nthe dog\n/stats\n"
    line = place.line("chat", "--max-new-tokens", 6, *more)
    done = subprocess.run(line, input=typed, env=place.environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done


def tokens(record: dict[str, Any]) -> list[list[int]]:
    return [turn["token_ids"] for turn in record["turns"]]


def test_a_terminal_shows_how_far_the_export_is_and_stays_small(place: Place) -> None:
    chat = place.terminal()
    try:
        chat.expect("verify")
        assert len(children(chat.pid)) == 1
        chat.expect("context of [0-9,]+ tokens; /help tells")
        assert children(chat.pid) == [] and not loads_torch(chat.pid)
    finally:
        chat.close(force=True)


def test_a_server_stays_small_too(place: Place) -> None:
    with serving(*place.line("serve")[4:], environment=place.environment) as (server, said):
        assert said["models"] == ["checkpoint"]
        (engine,) = children(server.pid)  # the export's process has ended
        assert not loads_torch(server.pid) and not loads_torch(engine)


def test_a_checkpoint_is_exported_once_and_talked_to(place: Place) -> None:
    first = json.loads(talk(place, "--json").stdout)
    assert [len(each) for each in tokens(first)] == [6, 6] and "speculation" not in first
    (kept,) = place.exports.glob("*.tflite")
    was = kept.stat()
    again = json.loads(talk(place, "--json").stdout)
    assert tokens(again) == tokens(first)
    assert list(place.exports.glob("*.tflite")) == [kept] and kept.stat().st_ino == was.st_ino

    ahead = json.loads(talk(place, "--draft", kept, "--json").stdout)
    assert tokens(ahead) == tokens(first) and len(list(place.exports.glob("*.tflite"))) == 2
    counts = ahead["speculation"]
    assert 0 < counts["accepted"] <= counts["proposed"] and counts["target_calls"] < counts["tokens"]
    assert counts["acceptance"] == counts["accepted"] / counts["proposed"]
    told = talk(place, "--draft", kept)
    said = f"draft: {counts['acceptance']:.0%} of {counts['proposed']} proposals accepted, {counts['tokens']} tokens in"
    assert said in told.stdout and said in told.stderr


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A file of code that, once it is run, takes longer than anybody waits."""
    file = tmp_path / "endless.py"
    file.write_text("import time\nfrom pathlib import Path\nPath(__file__).with_suffix('.begun').touch()\ntime.sleep(600)\n")
    return file


def begun(endless: Path, pid: int) -> list[int]:
    """The processes that export, once they run it."""
    for _ in range(1200):
        if endless.with_suffix(".begun").exists():
            found = children(pid)
            assert len(found) == 1
            return found
        time.sleep(0.05)
    pytest.fail("waited in vain")


def test_ctrl_c_ends_the_export_too(place: Place, endless: Path) -> None:
    chat = place.terminal(custom=endless)
    try:
        exporting = begun(endless, chat.pid)
        chat.send("\x03")
        chat.expect("flatlm chat: interrupted")
        assert "Traceback" not in chat.before
        chat.expect(pexpect.EOF)
        chat.close()
        assert chat.exitstatus == 130 and ended(exporting)
    finally:
        chat.close(force=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_export_goes_on_alone(place: Place, endless: Path, number: signal.Signals) -> None:
    line = place.line("serve", custom=endless)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=place.environment, text=True) as server:
        exporting: list[int] = []
        try:
            exporting = begun(endless, server.pid)
            server.send_signal(number)
            assert ended([server.pid, *exporting])
        finally:
            server.kill()
            for pid in filter(is_running, exporting):
                os.kill(pid, signal.SIGKILL)
        out, err = server.communicate()
    expected = (130, "flatlm serve: interrupted\n") if number == signal.SIGINT else (-number, "")
    assert (server.returncode, err, out) == (*expected, "")
