"""Phi 3's old rope keys, and what Phi, GLM and ERNIE refuse."""

import json
from pathlib import Path
from typing import Any

import pytest

from flatlm.errors import ConfigError
from flatlm.layers.config import LongRopeScaling, ModelConfig
from flatlm.utilities.configs.registry import build_config
from tests.examples.cases.phi import LONG, LONGROPE, PHI3, SHORT
from tests.examples.references import LLAMA_BASE

PHI = {**PHI3.base, "architectures": ["Phi3ForCausalLM"]}
OLD = {**PHI, "rope_theta": 10000.0, "original_max_position_embeddings": 16}


def read(directory: Path, values: dict[str, Any]) -> ModelConfig:
    (directory / "config.json").write_text(json.dumps(values))
    return build_config(directory)[0]


def test_phi_3s_old_and_new_rope_keys_mean_the_same(tmp_path: Path) -> None:
    new = read(tmp_path, {**PHI, "original_max_position_embeddings": 16, "rope_parameters": LONGROPE})
    factors = {"short_factor": SHORT, "long_factor": LONG}
    assert new == read(tmp_path, {**OLD, "rope_scaling": {"type": "longrope", **factors}})
    assert new == read(tmp_path, {**OLD, "rope_scaling": {"type": "su", **factors}})
    rope = new.blocks[0].attention.rope
    assert rope is not None and isinstance(rope.scaling, LongRopeScaling)
    assert rope.scaling.attention_factor == pytest.approx(1.5**0.5)  # sqrt(1 + log(64 / 16) / log(16))


def test_without_longrope_the_original_length_counts_for_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, {**PHI, "original_max_position_embeddings": 16}) == read(tmp_path, PHI)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({**PHI, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters"),
        ({**OLD, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({**OLD, "rope_scaling": {**LONGROPE, "original_max_position_embeddings": 32}}, "original_max_position_embeddings"),
        ({**OLD, "rope_scaling": {**LONGROPE, "short_factor": SHORT[:4], "long_factor": LONG[:4]}}, "short_factor"),
        ({**PHI, "attention_bias": True}, "attention_bias"),
        ({**PHI, "lm_head_bias": True}, "lm_head_bias"),
        ({**PHI, "full_attn_mod": 2}, "full_attn_mod"),
        ({**LLAMA_BASE, "architectures": ["Ernie4_5ForCausalLM"], "compression_ratio": 2.0}, "compression_ratio"),
        ({**LLAMA_BASE, "architectures": ["GlmForCausalLM"], "num_key_value_heads": None}, "num_key_value_heads"),
        ({**LLAMA_BASE, "architectures": ["GraniteForCausalLM"], "logits_scaling": 0}, "logits_scaling"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(values: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=key):
        read(tmp_path, values)
