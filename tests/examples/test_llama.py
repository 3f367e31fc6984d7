"""Llama's published configurations, and the two forms of its rope keys."""

import json
from pathlib import Path

import pytest
import torch

from flatlm.examples import llama, smollm, tiny_llama
from flatlm.layers.kv_cache import CacheGeometry
from flatlm.layers.model import build_on_meta
from flatlm.utilities.configs.registry import build_config
from tests.examples.cases.llama import LLAMA3_ROPE
from tests.examples.references import LLAMA_BASE, Case, make_llama

TOLERANCE = 1e-4


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
    model = build_on_meta(config, CacheGeometry(16))
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
