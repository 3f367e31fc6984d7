"""What the tiny Falcons of the parity suite cannot show: ALiBi over a long context, and the configurations of the first checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.falcon.modeling_falcon import build_alibi_tensor

from flatlm.errors import ConfigError
from flatlm.examples.falcon import TENSOR_NAMES, TENSOR_NAMES_TWO_NORMS, alibi_slopes
from flatlm.layers.config import MaskConfig
from flatlm.layers.mask import rounded_alibi
from flatlm.utilities.configs.registry import build_config
from flatlm.utilities.reading import Reading

FALCON_7B = {"architectures": ["FalconForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
FALCON_40B = {**FALCON_7B, "new_decoder_architecture": True, "num_kv_heads": 2}
OLD_7B = {"architectures": ["RWForCausalLM"], "hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128, "multi_query": True}


def build(directory: Path, config: dict[str, Any], **more: Any) -> Any:
    (directory / "config.json").write_text(json.dumps(config))
    return build_config(directory, Reading(**more))


@pytest.mark.parametrize("heads", [1, 6, 32, 71])
def test_alibi_is_the_references_to_the_bit(heads: int) -> None:
    ours = rounded_alibi(MaskConfig(None, alibi_slopes(heads), 1.0), 2048)
    expected = build_alibi_tensor(torch.ones(1, 2048, dtype=torch.long), heads, torch.float32)[:, 0]
    assert torch.equal(torch.tensor(ours), expected)


@pytest.mark.parametrize(("old", "new"), [(OLD_7B, FALCON_7B), ({**OLD_7B, "n_head_kv": 2}, FALCON_40B)])
def test_first_configurations_mean_the_same(old: dict[str, Any], new: dict[str, Any], tmp_path: Path) -> None:
    assert build(tmp_path, old) == build(tmp_path, new)


def test_a_named_familys_builder_is_the_one_whose_condition_holds(tmp_path: Path) -> None:
    assert build(tmp_path, FALCON_40B, family="falcon")[1].tensor_names is TENSOR_NAMES_TWO_NORMS
    assert build(tmp_path, {**FALCON_40B, "num_ln_in_parallel_attn": 1}, family="falcon")[1].tensor_names is TENSOR_NAMES


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({**FALCON_40B, "parallel_attn": False}, "parallel_attn"),
        ({**FALCON_40B, "num_kv_heads": 3}, "num_kv_heads"),
        ({**FALCON_7B, "num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
        ({**FALCON_7B, "apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ({**FALCON_7B, "ffn_hidden_size": 256, "ff_factor": 2}, "ff_factor"),
        ({**FALCON_7B, "hidden_size": 66}, "hidden_size"),
    ],
)
def test_what_falcon_has_not_is_refused_by_name(config: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f": {key} = "):
        build(tmp_path, config)
