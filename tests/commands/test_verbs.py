"""Every verb through the command line, on a tiny checkpoint with a tokenizer: what it prints, its JSON keys, its exit status."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flatlm.cli import VERBS, main
from tests.commands.conftest import run_json
from tests.examples.references import Case, make_llama


def test_export_verifies_and_says_so(checkpoint: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "model.litertlm"
    options = ["--recipe", "none", "--prefill", "4,16", "--kv-cache-len", "48"]
    report = run_json(capsys, "export", str(checkpoint), "-o", str(output), *options)
    verification = report["verification"]
    assert verification["passed"] and verification["tokens_compared"] >= 256 and verification["max_abs_error"] <= 1e-4
    assert report["signatures"] == ["prefill_4", "prefill_16", "decode"]
    manifest = run_json(capsys, "inspect", str(output))["manifest"]
    assert manifest["verification"]["max_abs_error"] == verification["max_abs_error"]
    assert manifest["recipe"]["name"] == "none"


def test_a_file_that_is_too_far_off_fails(checkpoint: Path, bundle: Path, tmp_path: Path, capsys) -> None:
    """The same file, judged against a checkpoint of which one norm differs."""
    other = tmp_path / "other"
    make_llama(Case("grouped_queries"), other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.1.input_layernorm.weight"] *= 1.01
    save_file(tensors, other / "model.safetensors")
    assert run_json(capsys, "verify", str(bundle), str(checkpoint), "--tokens", "40")["passed"] is True
    report = run_json(capsys, "verify", str(bundle), str(other), "--tokens", "40", status=1)
    assert report["passed"] is False
    assert report["max_abs_error"] > 1e-4


def test_another_models_checkpoint_is_refused(bundle: Path, tmp_path: Path, capsys) -> None:
    make_llama(Case("other", {"vocab_size": 96}), tmp_path)
    assert main(["verify", str(bundle), str(tmp_path), "--tokens", "4"]) == 2
    error = capsys.readouterr().err
    assert "a vocabulary of 128" in error and "one of 96" in error


def test_an_export_that_fails_verification_leaves_the_old_file(checkpoint: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    from flatlm.utilities.weights.loader import PlannedWeight

    right = PlannedWeight.rows
    monkeypatch.setattr(PlannedWeight, "rows", lambda self, start, stop: right(self, start, stop) * 1.01)
    output = tmp_path / "model.tflite"
    output.write_bytes(b"the old file")
    options = ["--recipe", "none", "--prefill", "4", "--kv-cache-len", "48"]
    report = run_json(capsys, "export", str(checkpoint), "-o", str(output), *options, status=1)
    assert report["verification"]["passed"] is False
    assert output.read_bytes() == b"the old file"
    assert [path.name for path in tmp_path.iterdir()] == ["model.tflite"]


def test_verify_against_the_eager_model_on_given_prompts(checkpoint: Path, bundle: Path, capsys) -> None:
    options = ["--tokens", "40", "--against", "eager", "--prompt", "the cat", "--prompt", "a dog"]
    report = run_json(capsys, "verify", str(bundle), str(checkpoint), *options)
    assert (report["against"], report["passed"]) == ("eager", True)
    assert report["tokens_compared"] >= 40


def test_generate_with_a_draft(checkpoint: Path, bundle: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "checked.litertlm"
    options = ["--recipe", "none", "--prefill", "4", "--kv-cache-len", "24,48", "--verify-len", "3", "--no-verify"]
    assert main(["export", str(checkpoint), "-o", str(path), *options]) == 0
    asked = ["--prompt", "the cat sat", "--max-new-tokens", "30"]
    alone = run_json(capsys, "generate", str(bundle), *asked)
    drafted = run_json(capsys, "generate", str(path), *asked, "--draft", str(bundle))
    assert drafted["token_ids"] == alone["token_ids"]
    assert "speculation" not in alone
    told = drafted["speculation"]
    assert told["tokens"] == 30 and told["target_calls"] == 10 and told["acceptance"] == 1.0  # the same weights: it is always right
    assert main(["generate", str(path), *asked, "--draft", str(bundle)]) == 0
    assert "draft: 100% of 20 proposals accepted, 30 tokens in 10 calls" in capsys.readouterr().err
    assert main(["generate", str(bundle), *asked, "--draft", str(path)]) == 2
    assert f"{bundle} has no signature that checks a draft: export it with --verify-len 4" in capsys.readouterr().err


def test_generate(checkpoint: Path, bundle: Path, capsys) -> None:
    import transformers

    got = run_json(capsys, "generate", str(bundle), "--prompt", "the cat sat", "--max-new-tokens", "12")
    assert got["prompt_token_ids"] == [3, 5, 7]
    reference = transformers.LlamaForCausalLM.from_pretrained(checkpoint)
    expected = reference.generate(torch.tensor([[3, 5, 7]]), max_new_tokens=12, do_sample=False)[0, 3:].tolist()
    expected = expected[: expected.index(2)] if 2 in expected else expected
    assert got["token_ids"] == expected
    sampled = [run_json(capsys, "generate", str(bundle), "--prompt", "the", "--temperature", "1", "--seed", "5") for _ in range(2)]
    assert sampled[0] == sampled[1]
    assert main(["generate", str(bundle), "--prompt", "the cat sat", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.startswith("the cat sat")


def test_a_tflite_file_needs_a_tokenizer(checkpoint: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"")
    assert main(["generate", str(path), "--prompt", "the"]) == 2
    assert "--tokenizer" in capsys.readouterr().err


def test_benchmark(bundle: Path, capsys) -> None:
    report = run_json(capsys, "benchmark", str(bundle), "--prefill", "8", "--decode", "4", "--runs", "2")
    for key in ("prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_s", "load_s", "peak_rss_bytes"):
        assert report[key] > 0


def test_inspect_and_check(checkpoint: Path, bundle: Path, capsys) -> None:
    found = run_json(capsys, "inspect", str(bundle))
    assert [signature["name"] for signature in found["signatures"]] == ["prefill_4", "prefill_16", "decode"]
    assert found["signatures"][2]["outputs"]["logits"] == "float32[1,1,128]"
    facts = run_json(capsys, "check", str(checkpoint), "--kv-cache-len", "48")
    assert facts["parameters"] == sum(tensor.numel() for tensor in load_file(checkpoint / "model.safetensors").values())
    assert facts["file_bytes"]["none"] == 4 * facts["parameters"] == sum(size for _, size in found["weights"].values())
    assert main(["inspect", str(bundle)]) == main(["check", str(checkpoint)]) == 0
    assert "BATCH_MATMUL" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x1c\x00\x00\x00TFL3" + bytes(64)])
def test_what_is_not_a_model_is_refused(content: bytes, checkpoint: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    for arguments in (["inspect", str(path)], ["benchmark", str(path)], ["verify", str(path), str(checkpoint)]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert "model.tflite" in error and "Traceback" not in error


def test_tables(capsys) -> None:
    assert run_json(capsys, "models")["families"][0]["name"] == "llama"
    names = [recipe["name"] for recipe in run_json(capsys, "recipes")["recipes"]]
    assert names[0] == "none" and "dynamic_int4_channel" in names
    for verb in ("models", "recipes"):
        assert main([verb]) == 0


def test_unknown_words(capsys) -> None:
    assert main(["exprot"]) == 2
    assert "did you mean export" in capsys.readouterr().err
    assert main([]) == 2
    for verb in VERBS:
        with pytest.raises(SystemExit) as leaving:
            main([verb, "--no-such-option"])
        assert leaving.value.code == 2
