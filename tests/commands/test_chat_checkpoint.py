"""`flatlm chat` with a checkpoint and the file that says what it is: exported once, kept, talked to, and written ahead by a draft."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import flatlm
from tests.examples.references import LLAMA_BASE, Case, make_reference
from tests.tasks.made import save_tokenizer

ROOT = Path(flatlm.__file__).parents[1]
WRITTEN = ROOT / "tests" / "authoring" / "compute_graph" / "custom" / "llama_written.py"


def talk(checkpoint: Path, cache: Path, *more: object) -> "subprocess.CompletedProcess[str]":
    options = ["--custom", WRITTEN, "--max-new-tokens", 6, "--threads", 1, "--prefill", 4, "--recipe", "none", *more]
    command = [sys.executable, "-m", "flatlm.cli", "chat", "-p", str(checkpoint), *map(str, options)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}
    typed = "/params ignore_eos true\nthe cat\nthe dog\n/stats\n"
    done = subprocess.run(command, input=typed, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done


def tokens(record: dict[str, Any]) -> list[list[int]]:
    return [turn["token_ids"] for turn in record["turns"]]


def test_a_checkpoint_is_exported_once_and_talked_to(tmp_path: Path) -> None:
    checkpoint, exports = tmp_path / "checkpoint", tmp_path / "flatlm" / "exports"
    make_reference(Case("mine", LLAMA_BASE), checkpoint)
    save_tokenizer(checkpoint)
    first = json.loads(talk(checkpoint, tmp_path, "--json").stdout)
    assert [len(each) for each in tokens(first)] == [6, 6] and "speculation" not in first
    (kept,) = exports.glob("*.tflite")
    was = kept.stat()
    again = json.loads(talk(checkpoint, tmp_path, "--json").stdout)
    assert tokens(again) == tokens(first)
    assert list(exports.glob("*.tflite")) == [kept] and kept.stat().st_ino == was.st_ino

    ahead = json.loads(talk(checkpoint, tmp_path, "--draft", kept, "--json").stdout)
    assert tokens(ahead) == tokens(first) and len(list(exports.glob("*.tflite"))) == 2
    counts = ahead["speculation"]
    assert 0 < counts["accepted"] <= counts["proposed"] and counts["target_calls"] < counts["tokens"]
    assert counts["acceptance"] == counts["accepted"] / counts["proposed"]
    told = talk(checkpoint, tmp_path, "--draft", kept)
    said = f"draft: {counts['acceptance']:.0%} of {counts['proposed']} proposals accepted, {counts['tokens']} tokens in"
    assert said in told.stdout and said in told.stderr
