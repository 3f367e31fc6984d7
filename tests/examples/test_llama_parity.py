"""Llama against transformers: tiny models, every parameter random, with and without cache, eager and exported."""

import json
from pathlib import Path

import pytest
import torch

from flatlm.examples import llama, smollm, tiny_llama
from flatlm.generative.verify import verify
from flatlm.layers.kv_cache import empty_caches
from flatlm.layers.model import build_on_meta
from flatlm.utilities.exporter import ExportRequest, export
from flatlm.utilities.registry import build_config
from tests.examples.references import LLAMA3_ROPE, LLAMA_BASE, LLAMA_CASES, Case, make_llama

TOLERANCE = 1e-4
EXPORTED = ("grouped_queries", "llama3_rope_scaling", "biases")


def logits_in_steps(model, ids: torch.Tensor, steps: list[int]) -> torch.Tensor:
    """Logits [T, V] of an eager model that reads the ids a few at a time."""
    caches, position, out = empty_caches(model.config, length=model.cache_length), 0, []
    for step in steps:
        logits, caches = model(ids[:, position : position + step], torch.arange(position, position + step, dtype=torch.int32), caches)
        out.append(logits[0])
        position += step
    return torch.cat(out)


@pytest.mark.parametrize("case", LLAMA_CASES, ids=str)
@torch.inference_mode()
def test_eager_logits_are_transformers(case: Case, tmp_path: Path) -> None:
    reference = make_llama(case, tmp_path)
    model = llama.build_model(tmp_path, kv_cache_max_len=48)
    ids = torch.randint(0, 128, (1, 40), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    expected = reference(ids.long()).logits[0]
    for steps in ([40], [1] * 40, [17, 1, 1, 21]):
        assert float((logits_in_steps(model, ids, steps) - expected).abs().max()) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in LLAMA_CASES if case.name in EXPORTED], ids=str)
def test_exported_file_is_transformers(case: Case, tmp_path: Path) -> None:
    make_llama(case, tmp_path / "checkpoint")
    output = tmp_path / "model.tflite"
    export(ExportRequest(tmp_path / "checkpoint", output, recipe=llama_recipe("none"), prefill_lengths=(4, 16), kv_cache_len=48))
    report = verify(output, tmp_path / "checkpoint", tokens=160, against="transformers")
    assert report.max_abs_error <= TOLERANCE, report
    assert report.tokens_compared >= 160
    assert report.greedy_tokens_equal == report.greedy_tokens == 32
    assert report.passed


def llama_recipe(name: str):
    from flatlm.quantize.recipes import get_recipe

    return get_recipe(name)


def test_the_old_and_the_new_rope_keys_mean_the_same(tmp_path: Path) -> None:
    def config_with(**keys) -> object:
        values = LLAMA_BASE | {"architectures": ["LlamaForCausalLM"], **keys}
        (tmp_path / "config.json").write_text(json.dumps(values))
        return build_config(tmp_path)[0]

    scaling = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_type"}
    new = config_with(rope_parameters={"rope_theta": 5e5, **LLAMA3_ROPE})
    assert new == config_with(rope_theta=5e5, rope_scaling=LLAMA3_ROPE)
    assert new == config_with(rope_theta=5e5, rope_scaling={"type": "llama3", **scaling})
    assert new != config_with(rope_theta=5e5, rope_scaling={**LLAMA3_ROPE, "factor": 4.0})


@pytest.mark.parametrize(
    ("family", "parameters"),
    [(llama, 1_235_814_400), (tiny_llama, 1_100_048_384), (smollm, 134_515_008)],
    ids=["llama-3.2-1b", "tinyllama-1.1b", "smollm2-135m"],
)
def test_published_configurations_have_the_published_sizes(family, parameters: int) -> None:
    config = family.get_model_config()
    model = build_on_meta(config, cache_length=16)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


PUBLISHED = {
    "llama-3.2-1b": (
        llama,
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 128256,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "tie_word_embeddings": True,
            "mlp_bias": False,
        },
    ),
    "tinyllama-1.1b": (
        tiny_llama,
        {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "vocab_size": 32000,
            "max_position_embeddings": 2048,
            "rope_theta": 10000.0,
            "rope_scaling": None,
            "tie_word_embeddings": False,
        },
    ),
    "smollm2-135m": (
        smollm,
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "max_position_embeddings": 8192,
            "rope_theta": 100000,
            "tie_word_embeddings": True,
            "is_llama_config": True,
            "rope_interleaved": False,
            "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        },
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_files_are_read(name: str, tmp_path: Path) -> None:
    family, keys = PUBLISHED[name]
    common = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "model_type": "llama",
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0",
        "use_cache": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(common | keys))
    assert build_config(tmp_path)[0] == family.get_model_config()


def test_define_and_run_gives_logits(tmp_path: Path) -> None:
    reference = make_llama(Case("grouped_queries"), tmp_path)
    logits = tiny_llama.define_and_run(tmp_path)
    with torch.inference_mode():
        expected = reference(torch.tensor([[1, 2, 3, 5, 8, 13]])).logits
    assert float((logits - expected).abs().max()) <= TOLERANCE
