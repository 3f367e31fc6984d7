"""Gemma's configurations as published, and the tensors' names in checkpoints that also read images."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flatlm.errors import ConfigError
from flatlm.layers.config import LinearScaling, ModelConfig, RopeConfig
from flatlm.utilities.configs.registry import build_config
from flatlm.utilities.example import build_model, run_sample
from tests.examples.cases.gemma import BASE, GEMMA3_IMAGES
from tests.examples.references import make_reference

GEMMA3_4B_TEXT = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "model_type": "gemma3_text",
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": GEMMA3_4B_TEXT,
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model", "num_hidden_layers": 27, "vision_use_head": False},
}
GEMMA3 = {
    **BASE,
    "architectures": ["Gemma3ForCausalLM"],
    "sliding_window": 8,
    "sliding_window_pattern": 2,
    "cache_implementation": "hybrid",
}
GEMMA2 = {**BASE, "architectures": ["Gemma2ForCausalLM"], "sliding_window": 8, "hidden_act": "gelu_pytorch_tanh"}
GEMMA = {**BASE, "architectures": ["GemmaForCausalLM"]}


def read(directory: Path, values: dict[str, Any]) -> ModelConfig:
    (directory / "config.json").write_text(json.dumps(values))
    return build_config(directory)[0]


def test_the_published_configuration_of_gemma_3_4b(tmp_path: Path) -> None:
    model = read(tmp_path, GEMMA3_4B)
    assert (model.vocab_size, model.max_positions, model.tied_head, model.logit_softcap) == (262208, 131072, True, None)
    attentions = [block.attention for block in model.blocks]
    assert {(attention.num_query_heads, attention.num_kv_heads, attention.head_dim) for attention in attentions} == {(8, 4, 256)}
    assert [attention.mask.window for attention in attentions[:12]] == [*[1024] * 5, None] * 2
    assert attentions[0].rope == RopeConfig(256, 10_000.0)
    assert attentions[5].rope == RopeConfig(256, 1_000_000.0, LinearScaling(8.0))
    assert attentions[0].scale == 256**-0.5


def test_gemma_3s_old_and_new_rope_keys_mean_the_same(tmp_path: Path) -> None:
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}
    new = read(tmp_path, {**GEMMA3, "rope_parameters": {"full_attention": full, "sliding_attention": {"rope_theta": 7e3}}})
    old = {"rope_theta": 5e5, "rope_local_base_freq": 7e3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    assert new == read(tmp_path, {**GEMMA3, **old})
    assert new != read(tmp_path, {**GEMMA3, **old, "rope_local_base_freq": 8e3})
    assert new != read(tmp_path, {**GEMMA3, **old, "rope_scaling": None})


def test_what_gemma_means_by_its_activations(tmp_path: Path) -> None:
    plain = read(tmp_path, GEMMA)
    assert plain == read(tmp_path, {**GEMMA, "hidden_act": "gelu"})
    assert plain == read(tmp_path, {**GEMMA, "hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"})
    with pytest.raises(ConfigError, match="contradicts hidden_act"):
        read(tmp_path, {**GEMMA, "hidden_activation": "silu"})


def test_an_absent_softcap_is_the_published_one_and_null_is_none(tmp_path: Path) -> None:
    absent = read(tmp_path, GEMMA2)
    assert (absent.blocks[0].attention.softcap, absent.logit_softcap) == (50.0, 30.0)
    null = read(tmp_path, {**GEMMA2, "attn_logit_softcapping": None, "final_logit_softcapping": None})
    assert (null.blocks[0].attention.softcap, null.logit_softcap) == (None, None)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({**GEMMA, "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({**GEMMA2, "sliding_window": None}, "sliding_window"),
        ({**GEMMA3, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({**GEMMA3, "rope_parameters": {"rope_theta": 1e4}}, "rope_theta"),
        ({**GEMMA3_4B, "text_config": {**GEMMA3_4B_TEXT, "final_logit_softcapping": 30.0}}, "final_logit_softcapping"),
        ({**GEMMA3_4B, "text_config": {**GEMMA3_4B_TEXT, "surprise": 1.5}}, "surprise"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(values: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=key):
        read(tmp_path, values)


def test_both_forms_of_the_names_beside_an_image_part(tmp_path: Path) -> None:
    make_reference(GEMMA3_IMAGES.case("names"), tmp_path)
    expected = run_sample(build_model(tmp_path, kv_cache_max_len=16))
    tensors = load_file(tmp_path / "model.safetensors")
    body = "language_model.model." if any(name.startswith("language_model.model.") for name in tensors) else "model.language_model."
    other = "model.language_model." if body == "language_model.model." else "language_model.model."
    renamed = {name.replace(body, other, 1) if name.startswith(body) else name: value for name, value in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, tmp_path / "model.safetensors")
    assert torch.equal(run_sample(build_model(tmp_path, kv_cache_max_len=16)), expected)
