"""Authors' classes against transformers: eager in any steps, exported through the command line, in float32 and int8."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flatlm.convert.worker import CachingCompiler
from flatlm.generative.inspect import inspect_file
from flatlm.generative.verify import verify
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.example import build_model
from flatlm.utilities.exporter import ExportRequest, export
from flatlm.utilities.reading import Reading
from tests.authoring.checkpoints import GEMMA_BLOCKS, GEMMA_MAP, LLAMA_MAP, gemma, llama
from tests.command_line import run_here
from tests.examples.test_parity import STEPS, TOLERANCE, logits_in_steps


def flatlm(*arguments: object) -> Any:
    done = run_here([*arguments, "--json"])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@torch.inference_mode()
def error_of(reference: Any, directory: Path, reading: Reading) -> float:
    """The largest difference of a logit, however 40 ids are read."""
    model = build_model(directory, kv_cache_max_len=48, reading=reading)
    ids = torch.randint(0, model.config.vocab_size, (1, 40), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    expected = reference(ids.long()).logits[0]
    assert float(expected.std()) > 0.1
    return max(float((logits_in_steps(model, ids, steps) - expected).abs().max()) for steps in STEPS)


LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"attention_bias": False, "mlp_bias": True, "tie_word_embeddings": True},
        {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16}, "head_dim": 8, "num_key_value_heads": 1},
    ],
    ids=["biased", "tied", "llama3"],
)
def test_a_llama_of_lmdeploys_builders_is_transformers(config: dict[str, Any], tmp_path: Path) -> None:
    assert error_of(llama(tmp_path, **config), tmp_path, Reading(module_map=LLAMA_MAP)) <= TOLERANCE


@pytest.mark.parametrize("file", [GEMMA_MAP, GEMMA_BLOCKS], ids=["plain torch", "blocks"])
def test_a_gemma_from_outside_is_transformers(file: Path, tmp_path: Path) -> None:
    assert error_of(gemma(tmp_path), tmp_path, Reading(module_map=file)) <= TOLERANCE


def test_the_command_line_exports_and_judges_a_class(tmp_path: Path) -> None:
    """In float32, as near to transformers as the author's own class is, and the same greedy text."""
    checkpoint, output = tmp_path / "checkpoint", tmp_path / "llama.tflite"
    llama(checkpoint)
    said = flatlm("check", checkpoint, "--module-map", LLAMA_MAP)
    assert said["family"] == "LlamaForCausalLM (module map)"
    assert (said["layers"], said["block_kinds"], said["module"]) == (2, 1, "LlamaForCausalLM")
    options = ("--recipe", "none", "--prefill", "4", "--kv-cache-len", "48", "--module-map", LLAMA_MAP)
    exported = flatlm("export", checkpoint, "-o", output, *options)
    assert exported["verification"]["against"] == "eager"
    assert exported["verification"]["max_abs_error"] <= TOLERANCE
    judged = flatlm("verify", output, checkpoint, "--against", "transformers")  # which needs no code of the author's
    assert judged["max_abs_error"] <= TOLERANCE
    assert judged["greedy_tokens_equal"] == judged["greedy_tokens"] == 32


NORMS = 64 * (2 * 2 + 1)
PARAMETERS = 128 * 64 + NORMS + 2 * (64 * 128 + 64 * 64 + 3 * 64 * 96)


@pytest.fixture(scope="module")
def compiler() -> CachingCompiler:
    return CachingCompiler()


@pytest.mark.parametrize("recipe", ["none", "dynamic_int8"])
def test_plain_torch_is_exported_by_any_recipe(recipe: str, compiler: CachingCompiler, tmp_path: Path) -> None:
    """No weight is a constant of the graph: bare parameters, [in, out] matrices and tied heads are quantized as the recipe says."""
    checkpoint, output = tmp_path / "checkpoint", tmp_path / "gemma.tflite"
    gemma(checkpoint)
    caches, check = ((12, 48), 3) if recipe == "none" else (48, None)
    request = ExportRequest(
        checkpoint, output, get_recipe(recipe), (4,), caches, reading=Reading(module_map=GEMMA_MAP), verify_length=check
    )
    report = export(request, compiler=compiler)
    judged = verify(output, checkpoint, reading=request.reading, tokens=96, against="transformers")
    if recipe == "none":
        assert judged.max_abs_error <= TOLERANCE
        assert judged.greedy_tokens_equal == 32
    else:
        assert 0 < judged.mean_kl < 0.05  # purely random weights: no favourites to agree on
        stored = inspect_file(output).weights
        floats = sum(size for scheme, (_, size) in stored.items() if scheme.startswith("float32"))
        assert floats == 4 * NORMS, stored  # every matrix is int8, also the one that no linear reads
        assert sum(count for count, _ in stored.values()) == 2 + 2 * 7
    assert report.parameters == PARAMETERS
