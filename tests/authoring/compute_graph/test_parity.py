"""Models written as flows against transformers: tiny checkpoints, every parameter random, eager and exported by the command line."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from flatlm.cli import main
from flatlm.generative.verify import verify
from flatlm.utilities.example import build_model
from flatlm.utilities.reading import Reading
from tests.examples.references import LLAMA_BASE, Case, make_reference
from tests.examples.test_parity import STEPS, TOLERANCE, logits_in_steps

CUSTOM = Path(__file__).parent / "custom"
QWEN2, LLAMA = CUSTOM / "qwen2_written.py", CUSTOM / "llama_written.py"
LLAMA3_SCALING = {
    "rope_theta": 10000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES = [
    (QWEN2, Case("plain", LLAMA_BASE, "qwen2", "Qwen2ForCausalLM")),
    (QWEN2, Case("tied", {**LLAMA_BASE, "tie_word_embeddings": True}, "qwen2", "Qwen2ForCausalLM")),
    (QWEN2, Case("all_heads_apart", {**LLAMA_BASE, "num_key_value_heads": 4}, "qwen2", "Qwen2ForCausalLM")),
    (QWEN2, Case("base", {**LLAMA_BASE, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "qwen2", "Qwen2ForCausalLM")),
    (QWEN2, Case("biases_everywhere", {**LLAMA_BASE, "attention_bias": True, "mlp_bias": True})),
    (LLAMA, Case("plain", LLAMA_BASE)),
    (LLAMA, Case("one_layer", {**LLAMA_BASE, "num_hidden_layers": 1})),
    (LLAMA, Case("scaled", {**LLAMA_BASE, "rope_parameters": LLAMA3_SCALING})),
]


@pytest.mark.parametrize(("file", "case"), CASES, ids=lambda value: value.stem if isinstance(value, Path) else str(value))
def test_eager_logits_are_transformers(file: Path, case: Case, tmp_path: Path) -> None:
    reference = make_reference(case, tmp_path)
    model = build_model(tmp_path, kv_cache_max_len=48, reading=Reading(custom=file))
    ids = torch.randint(0, model.config.vocab_size, (1, 40), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    with torch.inference_mode():
        expected = reference(ids.long()).logits[0]
        assert float(expected.std()) > 0.1
        assert max(float((logits_in_steps(model, ids, some) - expected).abs().max()) for some in STEPS) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["none", "dynamic_int8"])
def test_the_command_line_exports_and_proves_a_flow(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "out.tflite"
    make_reference(CASES[0][1], checkpoint, decided=recipe != "none")
    options = ["-p", str(checkpoint), "--custom", str(QWEN2), "--json"]
    lengths = ["--prefill", "8", "--kv-cache-len", *(["12,48", "--verify-len", "3"] if recipe == "none" else ["48"])]
    assert main(["export", *options, "-o", str(out), "--recipe", recipe, *lengths]) == 0
    exported = json.loads(capsys.readouterr().out)
    assert exported["verification"]["against"] == "eager"
    assert main(["verify", str(out), *options, "--tokens", "160", "--against", "transformers"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["against"] == "transformers" and report["tokens_compared"] >= 160
    if recipe == "none":
        assert report["max_abs_error"] <= TOLERANCE
        assert report["greedy_tokens_equal"] == report["greedy_tokens"] == 32
    else:
        assert report["mean_kl"] > 0  # it was rounded
    assert main(["inspect", str(out), "--json"]) == 0
    signatures = {each["name"]: each["operators"] for each in json.loads(capsys.readouterr().out)["signatures"]}
    layers = LLAMA_BASE["num_hidden_layers"]
    assert signatures["decode"]["FULLY_CONNECTED"] == 4 * layers + 1  # qkv, output, gate_up and down; the head
    assert signatures["decode"]["LOGISTIC"] == signatures["decode"]["SOFTMAX"] == layers
    assert signatures["decode"]["EMBEDDING_LOOKUP"] == 1
    manifest = json.loads((tmp_path / "out.tflite.manifest.json").read_text())
    assert manifest["custom"] == {"file": QWEN2.name, "sha256": hashlib.sha256(QWEN2.read_bytes()).hexdigest()}
    assert manifest["family"] == "Qwen2Written"


@pytest.mark.slow
def test_a_trained_llama_through_its_written_form(shared: Path, tmp_path: Path) -> None:
    """The same file as the family's own: as near to transformers, and the same greedy text."""
    out, checkpoint = tmp_path / "stories.tflite", shared / "checkpoints" / "stories260K"
    arguments = [str(checkpoint), "--custom", str(LLAMA), "-o", str(out), "--recipe", "none", "--prefill", "16", "--kv-cache-len", "128"]
    assert main(["export", *arguments, "--no-verify"]) == 0
    report = verify(out, checkpoint, tokens=200, against="transformers")
    assert report.passed and report.max_abs_error <= TOLERANCE
    assert report.greedy_tokens_equal == report.greedy_tokens
