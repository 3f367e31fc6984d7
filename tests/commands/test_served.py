"""What the verbs that talk to models open: files and checkpoints, templates, and what is refused."""

import argparse
import json
import shutil
from pathlib import Path

import pytest

import flatlm
from flatlm.commands import served
from flatlm.commands.served import Served, open_served
from flatlm.errors import CheckpointError, ExportError, RecipeError, RuntimeFileError, TokenizerError
from flatlm.generative import source
from flatlm.generative.engine_config import EngineConfig
from flatlm.generative.speculation import open_runner
from flatlm.utilities.tokenizing.named_templates import CHATML, PLAIN

DEMO = Path(flatlm.__file__).parent / "assets" / "demo_model"


def opened(*arguments: object, several: bool = False, plain: bool = False) -> list[Served]:
    parser = argparse.ArgumentParser()
    served.add_arguments(parser, several=several)
    return open_served(parser.parse_args([str(argument) for argument in arguments]), plain=plain)


@pytest.fixture
def asked(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, EngineConfig]]:
    """What exports were asked for; none is made."""
    asked: list[tuple[Path, EngineConfig]] = []
    monkeypatch.setattr(source, "exported_apart", lambda path, config, _: (asked.append((path, config)), bundle)[1])
    return asked


def test_a_bundle_brings_its_tokenizer(bundle: Path) -> None:
    (found,) = opened(bundle, "--threads", "1")
    assert (found.name, found.file, found.tokenizer_source, found.template) == (bundle.name, bundle, None, None)
    assert not found.has_template
    with open_runner(found.file, found.draft, threads=found.threads) as runner:
        assert (runner.threads, runner.cache_length) == (1, 48)


def test_what_has_no_template_goes_on_from_what_is_written(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = opened(bundle, plain=True)
    assert found.template == PLAIN and found.has_template
    assert f"{bundle} has no chat template" in capsys.readouterr().err
    (found,) = opened(bundle, "--chat-template", "chatml", plain=True)
    assert found.template == CHATML
    assert capsys.readouterr().err == ""


def test_a_template_of_its_own_stays(asked: list[tuple[Path, EngineConfig]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = shutil.copytree(DEMO, tmp_path / "own")
    settings = json.loads((own / "tokenizer_config.json").read_text("utf-8"))
    (own / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "mine"}), "utf-8")
    (found,) = opened(own, plain=True)
    assert (found.template, found.has_template) == (None, True)
    assert capsys.readouterr().err == ""


def test_a_checkpoint_is_exported_as_asked(asked: list[tuple[Path, EngineConfig]], bundle: Path) -> None:
    options = ["--recipe", "none", "--kv-cache-len", "48,96", "--prefill", "8,16", "--model", "llama", "--ignore-config-key", "k"]
    for place in ([DEMO], ["-p", DEMO]):
        (found,) = opened(*place, *options)
        assert (found.name, found.file, found.tokenizer_source) == ("demo_model", bundle, DEMO)
        config = EngineConfig("none", (48, 96), (8, 16), family="llama", ignored_config_keys=("k",))
        assert asked.pop() == (DEMO, config)


def test_several(asked: list[tuple[Path, EngineConfig]], bundle: Path) -> None:
    found = opened(bundle, "-p", DEMO, "--recipe", "none", several=True)
    assert [each.name for each in found] == [bundle.name, "demo_model"]
    assert asked[0][1].recipe == "none"
    with pytest.raises(RuntimeFileError, match="give one model: an exported file, or a checkpoint's directory"):
        opened(bundle, "-p", DEMO)


def test_what_cannot_be_opened_is_named(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFileError, match="give one model: an exported file"):
        opened()
    with pytest.raises(RuntimeFileError, match="give at least one model"):
        opened(several=True)
    with pytest.raises(RuntimeFileError, match=r"none\.tflite does not exist; give an exported file"):
        opened(tmp_path / "none.tflite")
    with pytest.raises(CheckpointError, match="none: is neither an exported file"):
        opened(tmp_path / "none")
    with pytest.raises(ExportError, match="is exported already, and --recipe, --kv-cache-len, --custom would be for exporting it"):
        opened(bundle, "--recipe", "none", "--custom", "x.py", "--kv-cache-len", 9)
    with pytest.raises(TokenizerError, match="chatlm: is no chat template"):
        opened(bundle, "--chat-template", "chatlm")
    with pytest.raises(RecipeError):
        opened(checkpoint, "--recipe", "no")
    file = tmp_path / "model.tflite"
    file.write_bytes(b"x")
    with pytest.raises(TokenizerError, match="has no tokenizer of its own: give its directory with --tokenizer DIR"):
        opened(file)
