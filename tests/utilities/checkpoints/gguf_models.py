"""Tiny models of transformers with every parameter random, written to GGUF as llama.cpp's converter writes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

Kind = gguf.GGMLQuantizationType
_SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96}
_BASE = {**_SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_TOKENS = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.padding_token_id": 0}


@dataclass(frozen=True)
class Case:
    """One architecture: its configuration in transformers, what the converter writes beside the sizes, and its changes of values."""

    arch: str
    model_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    change: str = ""
    tables: Mapping[str, Any] = field(default_factory=dict)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES = {
    "llama": Case("llama", "llama", change="interleave"),
    "llama_bias": Case(
        "llama", "llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 8}, change="interleave"
    ),
    "qwen2": Case("qwen2", "qwen2", {"rope_theta": 1e6}, {"rope.freq_base": 1e6}),
    "qwen3": Case("qwen3", "qwen3", {"head_dim": 32}, {"attention.key_length": 32, "attention.value_length": 32}),
    "gemma": Case("gemma", "gemma", {"head_dim": 16}, {"attention.key_length": 16, "attention.value_length": 16}, "shift"),
    "gemma2": Case(
        "gemma2",
        "gemma2",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 16, "num_hidden_layers": 3},
        {
            "attention.key_length": 32,
            "attention.value_length": 32,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "attention.sliding_window": 16,
        },
        "shift",
    ),
    "gemma3": Case(
        "gemma3",
        "gemma3_text",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, "num_hidden_layers": 7, "rope_theta": 1e6},
        {"attention.key_length": 16, "attention.value_length": 16, "attention.sliding_window": 16, "rope.freq_base": 1e6},
        "shift",
    ),
    "phi2": Case("phi2", "phi", {"partial_rotary_factor": 0.5}, {"rope.dimension_count": 8}),
    "phi3": Case("phi3", "phi3", {}, {"rope.dimension_count": 16, "rope.scaling.original_context_length": 64}),
    "gpt2": Case("gpt2", "gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 96}, change="transpose"),
    "falcon": Case("falcon", "falcon", {"multi_query": True}, change="sort"),
    "falcon_new": Case("falcon", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 96}, change="sort"),
    "falcon_one_norm": Case(
        "falcon", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}, change="sort"
    ),
    "stablelm": Case(
        "stablelm",
        "stablelm",
        {"use_qkv_bias": True, "partial_rotary_factor": 0.25},
        {"rope.dimension_count": 4, "use_parallel_residual": False},
    ),
    "stablelm_heads": Case(
        "stablelm",
        "stablelm",
        {"qk_layernorm": True, "use_parallel_residual": True, "partial_rotary_factor": 0.25},
        {"rope.dimension_count": 4, "use_parallel_residual": True},
        "stack",
    ),
    "olmo2": Case("olmo2", "olmo2"),
    "granite": Case(
        "granite",
        "granite",
        {"attention_multiplier": 0.25, "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0},
        {"attention.scale": 0.25, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 8.0},
        "interleave",
    ),
}


def random_model(case: Case, **more: Any) -> Any:
    """The reference model; norms, biases and all are random."""
    from transformers import AutoConfig, AutoModelForCausalLM

    ids = {key: _BASE[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = ids if case.model_type == "gpt2" else _BASE
    config = AutoConfig.for_model(case.model_type, **{**sizes, **case.config, **more})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm = ("norm" in name or "ln_" in name) and name.endswith("weight")
        parameter.data = 0.3 * noise + (0.0 if case.change == "shift" else 1.0) if is_norm else 0.2 * noise
    model.tie_weights()
    return model


def metadata_of(case: Case, model: Any) -> dict[str, Any]:
    config, found = model.config, {"general.architecture": case.arch, **_TOKENS}
    layer_norm = next((config.to_dict()[key] for key in ("layer_norm_eps", "layer_norm_epsilon") if key in config.to_dict()), None)
    sizes = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": next(
            value for key in ("ffn_hidden_size", "intermediate_size", "n_inner") if (value := getattr(config, key, None)) is not None
        ),
        "attention.head_count": config.num_attention_heads,
    }
    kv_heads = getattr(config, "num_key_value_heads", None)
    if case.arch == "falcon":
        kv_heads = config.num_kv_heads if config.new_decoder_architecture else 1
    if kv_heads is not None:
        sizes["attention.head_count_kv"] = kv_heads
    if layer_norm is not None:
        sizes["attention.layer_norm_epsilon"] = float(layer_norm)
    else:
        sizes["attention.layer_norm_rms_epsilon"] = float(config.rms_norm_eps)
    if case.arch == "llama":
        sizes |= {"rope.dimension_count": config.head_dim, "attention.key_length": config.head_dim, "vocab_size": config.vocab_size}
        sizes |= {"attention.value_length": config.head_dim}
    return found | {f"{case.arch}.{key}": value for key, value in (sizes | dict(case.metadata)).items()}


def gguf_tensors(case: Case, model: Any) -> dict[str, np.ndarray]:
    """The tensors under GGUF's names (the gguf library's own table), changed as llama.cpp's converter changes them."""
    config = model.config
    architecture = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == case.arch)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    tensors: dict[str, np.ndarray] = {}
    state = model.state_dict()
    if case.change == "stack":
        state = _stacked(state, config)
    for name, tensor in state.items():
        if name == "lm_head.weight" and getattr(config, "tie_word_embeddings", False):
            continue
        module, suffix = name.rsplit(".", 1)
        known = names.get_name(module)
        assert known is not None, name
        tensors[f"{known}.{suffix}"] = _changed(case, config, f"{known}.{suffix}", tensor.float().numpy())
    return tensors


def _changed(case: Case, config: Any, name: str, values: np.ndarray) -> np.ndarray:
    if case.change == "interleave" and (".attn_q." in name or ".attn_k." in name):
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        halves = values.reshape(heads, 2, -1, *values.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
    if case.change == "shift" and name.endswith("norm.weight"):
        return values + 1
    if case.change == "transpose" and values.ndim == 2 and name.startswith("blk."):
        return np.ascontiguousarray(values.T)
    if case.change == "sort" and ".attn_qkv." in name:
        groups = config.num_kv_heads if config.new_decoder_architecture else 1
        by_group = values.reshape(groups, config.num_attention_heads // groups + 2, -1, *values.shape[1:])
        parts = (by_group[:, :-2], by_group[:, -2], by_group[:, -1])
        return np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])
    return values


def _stacked(state: Mapping[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    found = {name: tensor for name, tensor in state.items() if "layernorm.norms." not in name}
    for layer in range(config.num_hidden_layers):
        for part, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            stem = f"model.layers.{layer}.self_attn.{part}_layernorm"
            found[f"{stem}.weight"] = torch.stack([state[f"{stem}.norms.{head}.weight"] for head in range(heads)])
    return found


Choose = Callable[[str, np.ndarray], Kind]


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray], choose: Choose | None = None) -> Path:
    """`choose` says each tensor's type; F32 by default, and for vectors always."""
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, values in tensors.items():
        kind = choose(name, values) if choose and values.ndim > 1 else Kind.F32
        if kind == Kind.F32:
            writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
        else:
            writer.add_tensor(name, encode(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def encode(values: np.ndarray, kind: Kind) -> np.ndarray:
    """Quantized by the library; where it only reads a type, random blocks with sound scales."""
    try:
        return gguf.quants.quantize(np.ascontiguousarray(values, dtype=np.float32), kind)
    except NotImplementedError:
        return random_blocks(values.shape, kind)


SCALES_AT = {Kind.Q2_K: (80, 82), Kind.Q3_K: (108,), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)}
"""Where a block keeps its half-precision scales."""
SCALES_AT |= {Kind.IQ4_NL: (0,), Kind.IQ4_XS: (0,)}


def random_blocks(shape: tuple[int, ...], kind: Kind, seed: int = 0) -> np.ndarray:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // block, size), dtype=np.uint8)
    for at in SCALES_AT[kind]:
        scales = rng.uniform(1e-4, 2e-3, (*blocks.shape[:-1], 1)).astype(np.float16)
        blocks[..., at : at + 2] = scales.view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def write_model(path: Path, case: Case, model: Any, choose: Choose | None = None, **metadata: Any) -> Path:
    tensors = gguf_tensors(case, model) | {name: np.asarray(table, np.float32) for name, table in case.tables.items()}
    return write_gguf(path, metadata_of(case, model) | metadata, tensors, choose)
