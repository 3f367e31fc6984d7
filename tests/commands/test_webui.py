"""The verb, in a process of its own: the page, its models, the same API."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest

from flatlm.cli import main

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_served_and_opened_on_request(bundle: Path, tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}\n')
    browser.chmod(0o755)
    command = [
        sys.executable,
        "-m",
        "flatlm.cli",
        "webui",
        str(bundle),
        "--port",
        "0",
        "--open",
        "--api-key",
        "sesame",
        "--model-name",
        "story",
    ]
    environment = os.environ | {"BROWSER": f"{browser} %s"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    try:
        said = process.stdout.readline()
        assert said.startswith("story at http://127.0.0.1:") and said.endswith("/ (Ctrl-C ends it)\n")
        address = said.split()[2]
        assert "<title>FlatLM</title>" in httpx.get(address).text
        for path in ("ui/models", "v1/models"):
            assert httpx.get(address + path).status_code == 401
        (card,) = httpx.get(f"{address}ui/models", headers={"Authorization": "Bearer sesame"}).json()["models"]
        assert card["id"] == "story" and card["file"] == bundle.name and card["chat_template"] is False
        client = openai.OpenAI(base_url=f"{address}v1", api_key="sesame", max_retries=0)
        answer = client.chat.completions.create(model="story", messages=[{"role": "user", "content": "Once"}], max_tokens=4)
        assert answer.usage.completion_tokens > 0, "in plain mode, without a template of its own"
        for _ in range(100):
            if opened.exists() and opened.read_text():
                break
            time.sleep(0.05)
        assert opened.read_text() == address
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert "has no chat template" in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def test_serve_has_no_page(bundle: Path) -> None:
    command = [sys.executable, "-m", "flatlm.cli", "serve", str(bundle), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        address = json.loads(process.stdout.readline())["address"]
        assert [httpx.get(f"{address}/{path}").status_code for path in ("", "ui/models", "ui/main.js")] == [404] * 3
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        process.communicate()


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["webui", str(tmp_path / "absent.tflite"), "--port", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["webui", "--port", "0"]) == 2
    assert "at least one model" in capsys.readouterr().err
