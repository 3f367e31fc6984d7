"""`flatlm evaluate`, through the command line, on a tiny checkpoint."""

import json
import shutil
from pathlib import Path

import pytest

from flatlm.cli import main
from flatlm.commands import evaluate as module
from tests.commands.conftest import run_json

TEXT = "the cat sat on the mat and the big dog ran on " * 8


@pytest.fixture(scope="module")
def scoring(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scoring") / "model.tflite"
    options = ["--recipe", "none", "--prefill", "16", "--kv-cache-len", "48", "--no-verify", "--prefill-logits"]
    assert main(["export", str(checkpoint), "-o", str(path), *options]) == 0
    return path


def test_text_against_the_checkpoint(scoring: Path, checkpoint: Path, tmp_path: Path, capsys) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    found = run_json(capsys, "evaluate", str(scoring), "--text", str(text), "--checkpoint", str(checkpoint), "--save")
    assert found["tokens"] == 12 * 8 - 1 and found["stride"] == 24 and found["context"] == 48  # plain text: half the context
    assert found["perplexity"] > 1 and 0 <= found["mean_kl"] < 1e-8 and found["top1_agreement"] == found["top5_agreement"] == 1
    assert found["perplexity_ratio"] == pytest.approx(1, abs=1e-5) and found["greedy"]["equal_to_the_end"] == 1
    saved = scoring.with_name("model.tflite.evaluation.json")
    assert json.loads(saved.read_text()) == found
    saved.unlink()
    assert main(["evaluate", str(scoring), "--text", str(text), "--checkpoint", str(checkpoint)]) == 0
    out = capsys.readouterr().out
    assert "perplexity ratio 1.0000" in out and "95 tokens of 1 documents; context 48, stride 24" in out
    assert "95 tokens were compared with what was kept of the reference" in out
    documents = tmp_path / "text.json"
    documents.write_text(json.dumps([TEXT, "the cat"]))
    options = ("--text", str(documents), "--tokenizer", str(checkpoint))
    found = run_json(capsys, "evaluate", str(scoring), *options)
    assert (found["tokens"], found["cut_documents"]) == (47 + 1, 1) and "stride" not in found
    assert main(["evaluate", str(scoring), *options]) == 0
    assert "1 documents were cut at 48 tokens" in capsys.readouterr().out


def test_without_logits_from_prefill(bundle: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat")
    assert main(["evaluate", str(bundle), "--text", str(tmp_path / "text.txt")]) == 0
    assert "--prefill-logits" in capsys.readouterr().err


def test_a_checkpoint_alone_is_compared_on_stories(
    scoring: Path, checkpoint: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.OWN_TEXT.exists()
    (tmp_path / "own.json").write_text('["the cat sat on the mat"]')
    monkeypatch.setattr(module, "OWN_TEXT", tmp_path / "own.json")
    assert run_json(capsys, "evaluate", str(scoring), "--checkpoint", str(checkpoint))["tokens"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "there is nothing to evaluate: give --text FILE, --checkpoint DIR or --tasks NAMES"),
        (("--text", "none.txt", "--tokenizer", "{checkpoint}"), "none.txt cannot be read"),
        (("--text", "{text}"), "give its directory with --tokenizer DIR"),
        (("--text", "{text}", "--tokenizer", "{other}"), "is the wrong tokenizer: it gives other ids than the one that"),
        (("--text", "{text}", "--checkpoint", "{checkpoint}", "--context", "4096"), "--kv-cache-len"),
    ],
)
def test_bad_input_is_one_line(scoring: Path, checkpoint: Path, tmp_path: Path, capsys, options: tuple[str, ...], message: str) -> None:
    (tmp_path / "text.txt").write_text("the cat sat")
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["<unk>"], vocabulary["the"] = vocabulary["the"], vocabulary["<unk>"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    places = {"checkpoint": str(checkpoint), "text": str(tmp_path / "text.txt"), "other": str(other)}
    assert main(["evaluate", str(scoring), *(option.format(**places) for option in options)]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.strip().splitlines()) == 1
