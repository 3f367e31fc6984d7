"""`--lora`, through the command line: exported, proved against peft, verified again."""

import json
from pathlib import Path

import peft
import pytest
import torch

from flatlm.cli import main
from flatlm.generative.reference import open_reference
from tests.examples.references import Case, make_llama

pytestmark = pytest.mark.slow  # exports models


def make_adapter(directory: Path, base: Case, **options: object) -> None:
    """`base` and `adapter` in the directory, every tensor random."""
    model = make_llama(base, directory / "base")
    if "resize" in options:
        model.resize_token_embeddings(options.pop("resize"), mean_resizing=False)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, **options}))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(0.5 + noise.abs() if "magnitude" in name else 0.2 * noise)
    adapted.save_pretrained(directory / "adapter")


EVERYTHING = {"target_modules": ["q_proj", "o_proj", "gate_proj", "down_proj", "embed_tokens", "lm_head"], "use_rslora": True}
CASES = {
    "everything": (Case("base"), EVERYTHING),
    "tied": (Case("tied", {"tie_word_embeddings": True}), {**EVERYTHING, "use_dora": True}),
    "resized": (Case("base"), {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "resize": 130}),
}


@pytest.mark.parametrize("name", CASES)
def test_export_verify_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    base, options = CASES[name]
    make_adapter(tmp_path, base, **options)
    checkpoint, adapter, file = str(tmp_path / "base"), str(tmp_path / "adapter"), tmp_path / "out.tflite"
    arguments = ["--prefill", "8", "--kv-cache-len", "48", "--recipe", "none"]
    capsys.readouterr()
    assert main(["export", checkpoint, "-o", str(file), "--lora", adapter, "--json", "--verify-tokens", "40", *arguments]) == 0
    verification = json.loads(capsys.readouterr().out)["verification"]
    assert (verification["against"], verification["passed"]) == ("transformers", True)
    assert verification["max_abs_error"] < 1e-3
    manifest = json.loads((tmp_path / "out.tflite.manifest.json").read_text())
    assert manifest["lora"]["name"] == "adapter"
    assert len(manifest["lora"]["fingerprint"]) == 64
    assert manifest["vocab_size"] == options.get("resize", 128)
    for against in ("transformers", "eager"):
        assert main(["verify", str(file), checkpoint, "--lora", adapter, "--tokens", "20", "--against", against]) == 0
    capsys.readouterr()
    assert main(["verify", str(file), checkpoint]) == 2
    assert "has the adapter 'adapter' merged into it: give its directory with --lora" in capsys.readouterr().err
    assert main(["check", checkpoint, "--lora", adapter, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tied_head"] is False


def test_a_file_without_its_adapter_is_found_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_adapter(tmp_path, Case("base"), target_modules=["q_proj"])
    checkpoint, adapter, file = str(tmp_path / "base"), str(tmp_path / "adapter"), tmp_path / "out.tflite"
    assert main(["export", checkpoint, "-o", str(file), "--no-verify", "--prefill", "8", "--kv-cache-len", "32", "--recipe", "none"]) == 0
    assert main(["verify", str(file), checkpoint, "--tokens", "20"]) == 0
    assert main(["verify", str(file), checkpoint, "--tokens", "20", "--lora", adapter]) == 1
    assert main(["check", checkpoint, "--lora", checkpoint]) == 2
    assert "has no adapter_config.json" in capsys.readouterr().err


def test_without_peft_the_eager_model_is_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flatlm.errors import ConfigError
    from flatlm.generative import reference

    make_adapter(tmp_path, Case("base"), target_modules=["q_proj"])
    with_peft = open_reference(tmp_path / "base", length=32, lora=tmp_path / "adapter")
    monkeypatch.setattr(reference, "find_spec", lambda name: None if name == "peft" else object())
    without = open_reference(tmp_path / "base", length=32, lora=tmp_path / "adapter")
    assert (with_peft.name, without.name) == ("transformers", "eager")
    assert abs(with_peft.feed([1, 2, 3]) - without.feed([1, 2, 3])).max() < 1e-3
    with pytest.raises(ConfigError, match="--against transformers needs peft: install what is missing, or choose --against eager"):
        open_reference(tmp_path / "base", length=32, lora=tmp_path / "adapter", against="transformers")
    assert open_reference(tmp_path / "base", length=32).name == "transformers"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({}, None),
        ({"pad_token": "</s>"}, None),
        ({"chat_template": "{{ messages[0].content }}"}, "brings another chat template than"),
        ({"added_tokens_decoder": {"512": {"content": "<|im_end|>"}}}, "brings another tokenizer than"),
    ],
    ids=str,
)
def test_a_bundle_carries_the_tokenizer_that_the_adapter_was_trained_with(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], complaint: str | None
) -> None:
    make_adapter(tmp_path, Case("base", {"vocab_size": 512}), target_modules=["q_proj"])
    original = shared / "checkpoints" / "stories260K"
    config = json.loads((original / "tokenizer_config.json").read_text())
    for name, changes in (("base", {}), ("adapter", change)):
        (tmp_path / name / "tokenizer.json").write_bytes((original / "tokenizer.json").read_bytes())
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(config | changes))
    arguments = ["--lora", str(tmp_path / "adapter"), "--no-verify", "--prefill", "8", "--kv-cache-len", "32"]
    status = main(["export", str(tmp_path / "base"), "-o", str(tmp_path / "out.litertlm"), *arguments])
    assert (status, (tmp_path / "out.litertlm").exists()) == ((0, True) if complaint is None else (2, False))
    assert complaint is None or complaint in capsys.readouterr().err
