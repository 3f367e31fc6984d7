"""The command line on an encoder: what works says an encoder's figures, what does not says what to do."""

import json
from pathlib import Path

import pytest

from flatlm.cli import main
from tests.examples.cases.encoders import BERT, THREE
from tests.examples.references import make_reference


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    make_reference(BERT["ForSequenceClassification"].case("c", **THREE), directory)
    return directory


@pytest.fixture(scope="module")
def file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("file") / "model.tflite"
    assert main(["export", str(checkpoint), "-o", str(output), "--prefill", "8,20", "--verify-tokens", "64"]) == 0
    return output


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_check_plans_for_a_task(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, embedding = (run_json(capsys, "check", str(checkpoint), *more) for more in ([], ["--task", "embedding"]))
    assert (own["kind"], own["task"], own["layers"], own["prefill"]) == ("encoder", "classification", 3, [16, 24])
    assert (embedding["task"], len(embedding["ignored_tensors"])) == ("embedding", 4)  # type: ignore[arg-type]
    assert main(["check", str(checkpoint)]) == 0
    assert "texts of up to 24 tokens" in capsys.readouterr().out


def test_a_file_is_proved_inspected_and_verified(file: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspected = run_json(capsys, "inspect", str(file))
    manifest = inspected["manifest"]
    assert isinstance(manifest, dict)
    assert manifest["verification"]["passed"]
    assert manifest["signatures"] == ["encode_8", "encode_20"]
    verified = run_json(capsys, "verify", str(file), str(checkpoint))
    assert verified["passed"]
    assert verified["greedy_tokens"] is None
    assert main(["verify", str(file), str(checkpoint)]) == 0
    assert "top-1 agreement" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["benchmark"], ["evaluate", "--text", "text.txt"]])
def test_what_is_for_decoders_says_so(
    file: Path, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("a text")
    monkeypatch.chdir(tmp_path)
    assert main([arguments[0], str(file), *arguments[1:]]) == 2
    assert "holds an encoder: this runs decoders' files only; `flatlm predict` reads texts with it" in capsys.readouterr().err


def test_a_decoder_has_no_tasks(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(shared / "checkpoints" / "stories260K"), "--task", "embedding"]) == 2
    assert "models of the family llama have no choice of heads" in capsys.readouterr().err
