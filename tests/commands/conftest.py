import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from flatlm.cli import main
from tests.examples.references import Case, make_llama


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    make_llama(Case("grouped_queries"), directory)
    words = ["<unk>", "<s>", "</s>", *"the a cat dog sat ran on mat and big".split()]  # noqa: SIM905
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}))
    return directory


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "model.litertlm"
    options = ["--recipe", "none", "--prefill", "4,16", "--kv-cache-len", "48", "--no-verify"]
    assert main(["export", str(checkpoint), "-o", str(path), *options]) == 0
    return path


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, object]:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == status
    out = capsys.readouterr().out
    assert len(out.strip().splitlines()) == 1
    return json.loads(out)
