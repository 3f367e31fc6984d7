"""docs/serving.md, docs/embeddings_api.md and docs/other_apis.md: their programs and their curl commands, asked of real servers."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from flatlm.serving.engines.messages import EngineSpec
from flatlm.serving.running import Served
from tests.docs_blocks import ROOT, blocks, run_page
from tests.serving.conftest import Running, running
from tests.serving.encoder_files import EncoderFiles

SHOWN_URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def encoder(encoder_files: EncoderFiles) -> Iterator[Running]:
    with running(Served(EngineSpec(encoder_files.embedding, tokenizer=encoder_files.tokenizer, threads=1), ("minilm",))) as found:
        yield found


def programs(page: str, url: str) -> list[tuple[str, str]]:
    """A page's blocks, by their languages, as a reader of that server would write them."""
    return [(block.language, block.text.replace(SHOWN_URL, url)) for block in blocks((ROOT / "docs" / page).read_text("utf-8"))]


def run_python(page: str, url: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the page's programs print."""
    printed = []
    for language, text in programs(page, url):
        if language == "python":
            exec(compile(text, page, "exec"), {})
            printed.append(capsys.readouterr().out)
    return printed


def shape(value: Any) -> Any:
    """What an answer is made of, whatever its numbers and ids are."""
    if isinstance(value, dict):
        return {key: shape(each) if key != "id" else "id" for key, each in value.items()}
    return [shape(each) for each in value] if isinstance(value, list) else 0.0 if isinstance(value, float) else value


def test_embeddings(encoder: Running, capsys: pytest.CaptureFixture[str]) -> None:
    (printed,) = run_python("embeddings_api.md", encoder.url, capsys)
    assert re.fullmatch(r"2 vectors of 32 dimensions; 15 tokens\n", printed)
    shown = [
        (command, json.loads(answer))
        for (language, command), (_, answer) in pairwise(programs("embeddings_api.md", encoder.url))
        if language == "sh" and command.startswith("curl")
    ]
    assert len(shown) == 2
    for command, answer in shown:
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        got = json.loads(done.stdout)
        got["usage"] = answer["usage"]
        assert shape(got) == shape(answer)


def test_other_apis(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    responses, messages, cancel = run_python("other_apis.md", server.url, capsys)
    assert responses.startswith("incomplete 20 '")
    assert len(responses.splitlines()) > 1
    assert re.match(r"(stop_sequence|max_tokens|end_turn) \d+\n\d+ tokens\n.+", messages)
    assert cancel == "200 stop\n"


def test_the_page_does_what_it_shows(demo_file: Path, tmp_path: Path) -> None:
    """With the export that the tests share, in place of the page's own."""
    shutil.copy(demo_file, tmp_path / "story.litertlm")
    run_page(ROOT / "docs" / "serving.md", tmp_path, not_run=["flatlm export"])
