"""The verb, in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from flatlm.cli import main
from tests.processes import children, ended

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def serving(*arguments: str, environment: dict[str, str] | None = None) -> Iterator[tuple[subprocess.Popen, dict[str, object]]]:
    command = [sys.executable, "-m", "flatlm.cli", "serve", *arguments, "--json", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | (environment or {}))
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_it_ends_with_its_engine(bundle: Path, number: signal.Signals, status: int) -> None:
    with serving(str(bundle)) as (process, said):
        assert httpx.get(f"{said['address']}/health").json()["status"] == "ok"
        engines = children(process.pid)
        assert len(engines) == 1
        process.send_signal(number)
        assert process.wait(20) == status
        assert ended(engines)


def test_names_and_keys(bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("from-file\n\n")
    arguments = [str(bundle), "--model_name", "mine", "--api_key", "given", "--api-key-file", str(keys)]
    with serving(*arguments, environment={"FLATLM_API_KEYS": "one,two"}) as (_, said):
        assert said["models"] == ["mine"]
        for key in ("given", "from-file", "one", "two"):
            client = openai.OpenAI(base_url=f"{said['address']}/v1", api_key=key, max_retries=0)
            assert [model.id for model in client.models.list()] == ["mine"]
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{said['address']}/v1", api_key="three", max_retries=0).models.list()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{bundle}", "{bundle}"], "would both be called model"),
        (["{bundle}", "--model-name", "a", "--model-name", "b"], "give one for each, in their order"),
        (["{bundle}", "--slots", "0"], "--slots 0"),
        (["{bundle}", "--max-connections", "0"], "--max-connections 0"),
        (["{bundle}", "--timeout", "nan"], "--timeout nan"),
        (["{bundle}", "--port", "70000"], "--port 70000"),
        (["{bundle}", "--api-key", ""], "--api-key is empty"),
        (["{bundle}", "--api-key-file", "{folder}/notes.litertlm"], "notes.litertlm: is not UTF-8"),
        (["{bundle}", "--api-key", "a", "--api-key-file", "{folder}/blank"], "blank: has no keys in it"),
        (["{bundle}", "--model-name", ""], "--model-name is empty"),
        (["{bundle}", "--host", "203.0.113.7"], "203.0.113.7:8000: cannot listen there"),
        (["missing.tflite"], "missing.tflite does not exist"),
        (["{folder}/notes.litertlm"], "notes.litertlm"),
    ],
)
def test_bad_input_is_one_line(bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    (tmp_path / "notes.litertlm").write_bytes(b"no model \xff")
    (tmp_path / "blank").write_text("\n \n")
    assert main(["serve", *(argument.format(bundle=bundle, folder=tmp_path) for argument in arguments)]) == 2
    said = capfd.readouterr().err.strip()
    assert len(said.splitlines()) == 1, said
    assert said.startswith("flatlm serve: ")
    assert message in said


@pytest.mark.parametrize("value", ["", " , "])
def test_a_variable_without_keys_lets_nobody_in(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], value: str
) -> None:
    monkeypatch.setenv("FLATLM_API_KEYS", value)
    assert main(["serve", str(bundle), "--host", "203.0.113.7"]) == 2
    assert "FLATLM_API_KEYS has no keys in it" in capfd.readouterr().err
