"""Forms of config.json and of checkpoints that transformers no longer writes: what they mean, and what is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flatlm.errors import CheckpointError, ConfigError
from flatlm.layers.config import YarnScaling
from flatlm.utilities.configs.registry import build_config
from flatlm.utilities.example import build_model, run_sample
from tests.examples.cases import gpt2
from tests.examples.references import make_reference

TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 128}
OPT = {"architectures": ["OPTForCausalLM"], **TINY, "ffn_dim": 96} | {"intermediate_size": None}
NEOX = {"architectures": ["GPTNeoXForCausalLM"], **TINY}
OLMO3 = {"architectures": ["Olmo3ForCausalLM"], **TINY}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192, "attention_factor": 1.2}


def build(directory: Path, config: dict[str, Any]) -> Any:
    (directory / "config.json").write_text(json.dumps(config))
    return build_config(directory)[0]


def test_stablelms_first_form(tmp_path: Path) -> None:
    new = {"architectures": ["StableLmForCausalLM"], **TINY, "partial_rotary_factor": 0.5, "layer_norm_eps": 1e-6}
    old = {"architectures": ["StableLMEpochForCausalLM"], **TINY, "rope_pct": 0.5, "norm_eps": 1e-6, "rotary_scaling_factor": 1.0}
    assert build(tmp_path, old) == build(tmp_path, new)


def test_neoxs_two_forms(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 20000.0, "partial_rotary_factor": 0.5}
    assert build(tmp_path, {**NEOX, "rotary_pct": 0.5, "rotary_emb_base": 20000}) == build(tmp_path, {**NEOX, "rope_parameters": rope})


def test_olmo3s_old_form_scales_only_layers_without_a_window(tmp_path: Path) -> None:
    config = build(tmp_path, {**OLMO3, "rope_theta": 500000, "rope_scaling": YARN})
    scalings = [block.attention.rope.scaling for block in config.blocks]
    assert scalings[:3] == [None] * 3
    assert isinstance(scalings[3], YarnScaling)
    assert [block.attention.mask.window for block in config.blocks] == [4096, 4096, 4096, None]
    both = {"full_attention": {"rope_theta": 500000.0, **YARN}, "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0}}
    assert config == build(tmp_path, {**OLMO3, "rope_parameters": both})


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({**OPT, "do_layer_norm_before": False}, "do_layer_norm_before"),
        ({**OPT, "_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
        ({**OPT, "word_embed_proj_dim": 32}, "word_embed_proj_dim"),
        ({**OPT, "hidden_size": 66}, "hidden_size"),
        ({**NEOX, "rotary_pct": 0.2}, "partial_rotary_factor"),
        ({**OLMO3, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}, "rope_parameters"),
        ({**OLMO3, "layer_types": ["full_attention"]}, "layer_types"),
        ({"architectures": ["StableLMEpochForCausalLM"], **TINY, "rotary_scaling_factor": 2.0}, "rotary_scaling_factor"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(config: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{key} = "):
        build(tmp_path, config)


def gpt2_with(directory: Path, changed: dict[str, torch.Tensor], *, removed: str = "") -> torch.Tensor:
    """Logits of a GPT-2 whose file has other tensors."""
    tensors = changed or load_file(directory / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if not removed or removed not in name}, directory / "model.safetensors")
    return run_sample(build_model(directory))


def test_gpt2_as_openai_published_it(tmp_path: Path) -> None:
    make_reference(gpt2.CASES[0], tmp_path)
    expected = run_sample(build_model(tmp_path))
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64) for layer in range(3)}
    assert torch.equal(gpt2_with(tmp_path, tensors | masks), expected)


def test_gpt2_without_the_bias_of_queries_keys_and_values(tmp_path: Path) -> None:
    make_reference(gpt2.CASES[0], tmp_path)
    zeroed = load_file(tmp_path / "model.safetensors")
    for name, tensor in zeroed.items():
        if name.endswith("c_attn.bias"):
            tensor.zero_()
    expected = gpt2_with(tmp_path, zeroed)
    torch.testing.assert_close(gpt2_with(tmp_path, {}, removed="c_attn.bias"), expected, rtol=0, atol=1e-5)
    save_file(zeroed, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"h\.1\.attn\.c_attn\.bias .* is missing"):
        gpt2_with(tmp_path, {}, removed="h.1.attn.c_attn.bias")
