"""The architectures that GGUF files are read of: what llama.cpp calls each tensor and key, and what it does to the values.

A record says, in transformers' terms, what the model is, where each tensor goes, and what is to be undone: llama.cpp's converter
interleaves the rows of Llama's queries and keys (its rotary embedding turns neighbours), adds 1 to Gemma's norms, transposes GPT-2's
matrices, and sorts Falcon's merged projection into queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_DECODER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_q": "model.layers.{}.self_attn.q_proj",
    "attn_k": "model.layers.{}.self_attn.k_proj",
    "attn_v": "model.layers.{}.self_attn.v_proj",
    "attn_output": "model.layers.{}.self_attn.o_proj",
    "ffn_gate": "model.layers.{}.mlp.gate_proj",
    "ffn_up": "model.layers.{}.mlp.up_proj",
    "ffn_down": "model.layers.{}.mlp.down_proj",
}
_PRE_NORMS = {"attn_norm": "model.layers.{}.input_layernorm", "ffn_norm": "model.layers.{}.post_attention_layernorm"}
_POST_NORMS = {
    "post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
_BOTH_NORMS = {
    "attn_norm": "model.layers.{}.input_layernorm",
    "ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    **_POST_NORMS,
}
_QK_NORMS = {"attn_q_norm": "model.layers.{}.self_attn.q_norm", "attn_k_norm": "model.layers.{}.self_attn.k_norm"}

_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
}
_RMS = {**_KEYS, "attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_LAYER = {**_KEYS, "attention.layer_norm_epsilon": "layer_norm_eps"}

Quirk = Literal["gemma2", "gemma3", "falcon", "phi3", "stablelm"]


@dataclass(frozen=True)
class GgufArchitecture:
    """One architecture of general.architecture. Modules are named as in transformers, `{}` for the layer's index."""

    model_type: str
    model_class: str
    tensors: Mapping[str, str]
    """GGUF's name, without `blk.N.` and the suffix, to the module."""
    keys: Mapping[str, str]
    """Metadata, without the architecture's prefix, to the key of config.json; all are needed."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """What the architecture implies and no metadata says."""
    flags: Mapping[str, str] = field(default_factory=dict)
    """Key of config.json to the tensor whose presence makes it true."""
    heads: tuple[str, str | None] = ("num_attention_heads", "num_key_value_heads")
    """Keys of config.json; None: there are as many key heads as query heads."""
    head_dim: Literal["key", "implied", "partial"] = "implied"
    """key: config.json says it; implied: it is hidden_size / heads; partial: that, and only a part of it is rotated."""
    rotary: bool = True
    interleaved: bool = False
    """The rows of attn_q and attn_k are interleaved within each head."""
    shifted_norms: bool = False
    """1 was added to the norms' weights."""
    transposed: frozenset[str] = frozenset()
    """Matrices that transformers keeps as [in, out]."""
    split: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    """Merged queries, keys and values that transformers has apart."""
    grouped: frozenset[str] = frozenset()
    """Merged projections that transformers sorts by groups: the queries of a group, its key, its value."""
    stacked: Mapping[str, str] = field(default_factory=dict)
    """Norms of all heads as one matrix; the second `{}` is the head."""
    variants: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """More of `tensors` for files that have a certain tensor."""
    quirks: tuple[Quirk, ...] = ()
    """What of the configuration takes code (gguf_config.py)."""
    transformers_reads: bool = True
    """transformers' own reader of GGUF files gets every tensor of it right."""


def _llama_like(model_type: str, model_class: str, **more: Any) -> GgufArchitecture:
    return GgufArchitecture(
        model_type,
        model_class,
        _DECODER | _PRE_NORMS | {"attn_rot_embd": "model.layers.{}.self_attn.rotary_emb.inv_freq"},
        _RMS | more.pop("keys", {}),
        {"hidden_act": "silu"},
        {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"},
        interleaved=True,
        **more,
    )


def _gemma(number: str, model_type: str, tensors: Mapping[str, str], activation: str, **more: Any) -> GgufArchitecture:
    constants = {activation: "gelu_pytorch_tanh", "attention_bias": False}
    names = {**_DECODER, **tensors}
    return GgufArchitecture(model_type, f"Gemma{number}ForCausalLM", names, _RMS, constants, head_dim="key", shifted_norms=True, **more)


ARCHITECTURES: Mapping[str, GgufArchitecture] = {
    "llama": _llama_like("llama", "LlamaForCausalLM", head_dim="key"),
    "granite": _llama_like(
        "granite",
        "GraniteForCausalLM",
        keys={
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
        transformers_reads=False,
    ),
    "qwen2": GgufArchitecture(
        "qwen2", "Qwen2ForCausalLM", _DECODER | _PRE_NORMS, _RMS, {"hidden_act": "silu", "use_sliding_window": False}
    ),
    "qwen3": GgufArchitecture(
        "qwen3",
        "Qwen3ForCausalLM",
        _DECODER | _PRE_NORMS | _QK_NORMS,
        _RMS,
        {"hidden_act": "silu", "use_sliding_window": False},
        {"attention_bias": "blk.0.attn_q.bias"},
        head_dim="key",
    ),
    "gemma": _gemma("", "gemma", _PRE_NORMS, "hidden_act", transformers_reads=False),
    "gemma2": _gemma("2", "gemma2", _BOTH_NORMS, "hidden_activation", quirks=("gemma2",)),
    "gemma3": _gemma("3", "gemma3_text", _BOTH_NORMS | _QK_NORMS, "hidden_activation", quirks=("gemma3",)),
    "phi2": GgufArchitecture(
        "phi",
        "PhiForCausalLM",
        {
            "token_embd": "model.embed_tokens",
            "output_norm": "model.final_layernorm",
            "output": "lm_head",
            "attn_norm": "model.layers.{}.input_layernorm",
            "attn_q": "model.layers.{}.self_attn.q_proj",
            "attn_k": "model.layers.{}.self_attn.k_proj",
            "attn_v": "model.layers.{}.self_attn.v_proj",
            "attn_output": "model.layers.{}.self_attn.dense",
            "ffn_up": "model.layers.{}.mlp.fc1",
            "ffn_down": "model.layers.{}.mlp.fc2",
        },
        _LAYER,
        {"hidden_act": "gelu_new", "qk_layernorm": False},
        head_dim="partial",
        split={"attn_qkv": tuple(f"model.layers.{{}}.self_attn.{part}_proj" for part in "qkv")},  # type: ignore[dict-item]
        transformers_reads=False,
    ),
    "phi3": GgufArchitecture(
        "phi3",
        "Phi3ForCausalLM",
        {name: _DECODER[name] for name in ("token_embd", "output_norm", "output", "attn_output", "ffn_down")}
        | _PRE_NORMS
        | {"attn_qkv": "model.layers.{}.self_attn.qkv_proj", "ffn_up": "model.layers.{}.mlp.gate_up_proj"},
        _RMS,
        {"hidden_act": "silu"},
        head_dim="partial",
        quirks=("phi3",),
    ),
    "gpt2": GgufArchitecture(
        "gpt2",
        "GPT2LMHeadModel",
        {
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
            "attn_norm": "transformer.h.{}.ln_1",
            "attn_qkv": "transformer.h.{}.attn.c_attn",
            "attn_output": "transformer.h.{}.attn.c_proj",
            "ffn_norm": "transformer.h.{}.ln_2",
            "ffn_up": "transformer.h.{}.mlp.c_fc",
            "ffn_down": "transformer.h.{}.mlp.c_proj",
        },
        {
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "block_count": "n_layer",
            "feed_forward_length": "n_inner",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        {"activation_function": "gelu_new"},
        heads=("n_head", None),
        rotary=False,
        transposed=frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
    ),
    "falcon": GgufArchitecture(
        "falcon",
        "FalconForCausalLM",
        {
            "token_embd": "transformer.word_embeddings",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
            "attn_norm": "transformer.h.{}.input_layernorm",
            "attn_qkv": "transformer.h.{}.self_attention.query_key_value",
            "attn_output": "transformer.h.{}.self_attention.dense",
            "ffn_up": "transformer.h.{}.mlp.dense_h_to_4h",
            "ffn_down": "transformer.h.{}.mlp.dense_4h_to_h",
        },
        {
            "context_length": "max_position_embeddings",
            "embedding_length": "hidden_size",
            "block_count": "num_hidden_layers",
            "feed_forward_length": "ffn_hidden_size",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        {"activation": "gelu", "alibi": False, "parallel_attn": True},
        {"bias": "blk.0.attn_qkv.bias"},
        heads=("num_attention_heads", "num_kv_heads"),
        grouped=frozenset({"attn_qkv"}),
        variants={"blk.0.attn_norm_2.weight": {"attn_norm": "transformer.h.{}.ln_mlp", "attn_norm_2": "transformer.h.{}.ln_attn"}},
        quirks=("falcon",),
        transformers_reads=False,
    ),
    "stablelm": GgufArchitecture(
        "stablelm",
        "StableLmForCausalLM",
        _DECODER | _PRE_NORMS,
        _LAYER,
        {"hidden_act": "silu"},
        {"use_qkv_bias": "blk.0.attn_q.bias", "qk_layernorm": "blk.0.attn_q_norm.weight"},
        head_dim="partial",
        stacked={
            "attn_q_norm": "model.layers.{}.self_attn.q_layernorm.norms.{}",
            "attn_k_norm": "model.layers.{}.self_attn.k_layernorm.norms.{}",
        },
        quirks=("stablelm",),
        transformers_reads=False,
    ),
    "olmo2": GgufArchitecture(
        "olmo2",
        "Olmo2ForCausalLM",
        _DECODER | _POST_NORMS | _QK_NORMS,
        _RMS,
        {"hidden_act": "silu", "attention_bias": False},
        transformers_reads=False,
    ),
}
"""By general.architecture. Mistral's models are of "llama"."""

ROPE_TENSORS = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
"""What config.json says by a rule, as a table; the configuration is made from it."""

INERT_KEYS = frozenset({"vocab_size", "rope.scaling.finetuned", "tensor_data_layout"})
"""Metadata that changes no number: the embedding's shape tells the vocabulary's size."""
