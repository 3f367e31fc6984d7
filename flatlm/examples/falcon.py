"""Falcon, in its three designs: Falcon-RW (ALiBi, one branch after the other), Falcon 7B (one key/value head, branches side by side), and
Falcon 40B, 180B and Falcon 2 (grouped queries, a norm for each branch or one for both). Falcon 3 is a Llama.

Reference: transformers.FalconForCausalLM. Papers: Almazrouei et al. 2023 (arXiv 2311.16867), Malartic et al. 2024 (arXiv 2407.14885).
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from flatlm.layers.config import AttentionConfig, BlockConfig, FeedForwardConfig, MaskConfig, ModelConfig, NormConfig, NormKind
from flatlm.utilities.configs.config_parts import ACTIVATIONS, read_rope
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.weights.tensor_names import TensorNames

__all__ = ["TENSOR_NAMES", "TENSOR_NAMES_TWO_NORMS", "FalconConfigBuilder", "FalconTwoNormsConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES = TensorNames(
    embedding="transformer.word_embeddings",
    final_norm="transformer.ln_f",
    lm_head="lm_head",
    pre_attn_norm="transformer.h.{}.input_layernorm",
    attn_fused_qkv_proj="transformer.h.{}.self_attention.query_key_value",
    attn_output_proj="transformer.h.{}.self_attention.dense",
    pre_ff_norm="transformer.h.{}.post_attention_layernorm",
    ff_up_proj="transformer.h.{}.mlp.dense_h_to_4h",
    ff_down_proj="transformer.h.{}.mlp.dense_4h_to_h",
    grouped_qkv=True,
    prefixes=(("transformer.", ""),),
    ignored=("*h.*.self_attention.rotary.inv_freq",),  # tables that early checkpoints carried along
)
TENSOR_NAMES_TWO_NORMS = replace(TENSOR_NAMES, pre_attn_norm="transformer.h.{}.ln_attn", pre_ff_norm="transformer.h.{}.ln_mlp")


class FalconConfigBuilder(ConfigBuilder):
    """config.json of transformers.FalconConfig, and of the RWForCausalLM that came with the first checkpoints (n_head, n_layer)."""

    family = "falcon"
    tensor_names = TENSOR_NAMES
    two_norms: ClassVar[bool] = False

    @classmethod
    def condition(cls, hf_config: ConfigReader) -> bool:
        return super().condition(hf_config) and _has_two_norms(hf_config) == cls.two_norms

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        dim, heads = _positive_int(hf_config, "hidden_size", "n_embed"), _positive_int(hf_config, "num_attention_heads", "n_head")
        if dim % heads:
            raise hf_config.wrong("hidden_size", f"is not a multiple of {heads} heads")
        max_positions, grouped = hf_config.positive_int("max_position_embeddings", 2048), _is_grouped(hf_config)
        parallel, norms = hf_config.boolean("parallel_attn", True), hf_config.positive_int("num_ln_in_parallel_attn", 2 if grouped else 1)
        if grouped:
            hf_config.require("parallel_attn", True)  # the reference has no other
        if norms > (2 if grouped else 1):
            raise hf_config.wrong("num_ln_in_parallel_attn", "must be 1, or 2 with new_decoder_architecture")
        hf_config.require("apply_residual_connection_post_layernorm", False)
        bias, hidden_dim = hf_config.boolean("bias", False), hf_config.positive_int("ffn_hidden_size", 4 * dim)
        if hf_config.positive_int("ff_factor", hidden_dim // dim) * dim != hidden_dim and hf_config.has("ff_factor"):
            raise hf_config.wrong("ff_factor", f"and ffn_hidden_size = {hidden_dim} do not agree")
        attention = _attention(hf_config, dim // heads, heads, _kv_heads(hf_config, heads, grouped=grouped))
        norm = NormConfig(NormKind.LAYER, hf_config.positive_float("layer_norm_epsilon", 1e-5), bias=True)
        block = BlockConfig(
            replace(attention, qkv_bias=bias, output_bias=bias),
            FeedForwardConfig(hidden_dim, hf_config.choice("activation", ACTIVATIONS, "gelu"), gated=False, bias=bias),
            norm,
            norm if norms == 2 or not parallel else None,
            parallel=parallel,
        )
        return ModelConfig(
            vocab_size=hf_config.positive_int("vocab_size"),
            embedding_dim=dim,
            blocks=(block,) * _positive_int(hf_config, "num_hidden_layers", "n_layer"),
            max_positions=max_positions,
            final_norm=norm,
            tied_head=hf_config.boolean("tie_word_embeddings", True),
        )


class FalconTwoNormsConfigBuilder(FalconConfigBuilder):
    """The same where each branch has a norm of its own: these have other names."""

    tensor_names = TENSOR_NAMES_TWO_NORMS
    two_norms = True


def _attention(hf_config: ConfigReader, width: int, heads: int, kv_heads: int) -> AttentionConfig:
    """Without biases. Where positions are in ALiBi's slopes, nothing is turned."""
    if not hf_config.boolean("alibi", False):
        return AttentionConfig(heads, kv_heads, width, read_rope(hf_config, width))
    hf_config.skip("rope_theta", "rope_scaling", "rope_parameters")
    return AttentionConfig(heads, kv_heads, width, None, mask=MaskConfig(None, alibi_slopes(heads), width**-0.5))


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """Press et al. 2022: 2^(-8/n), 2^(-16/n), ... for a power of two n; every other slope of 2n heads for those beyond it."""
    power = 2 ** math.floor(math.log2(heads))
    further = (2 ** (-8 * (2 * i + 1) / (2 * power)) for i in range(heads - power))
    return (*(2 ** (-8 * (i + 1) / power) for i in range(power)), *further)


def _is_grouped(hf_config: ConfigReader) -> bool:
    """`new_decoder_architecture`, which the first 40B checkpoints do not name: they have n_head_kv."""
    return hf_config.boolean("new_decoder_architecture", hf_config.has("n_head_kv"))


def _has_two_norms(hf_config: ConfigReader) -> bool:
    return _is_grouped(hf_config) and hf_config.positive_int("num_ln_in_parallel_attn", 2) == 2


def _kv_heads(hf_config: ConfigReader, heads: int, *, grouped: bool) -> int:
    one = hf_config.boolean("multi_query", True)
    hf_config.skip("num_kv_heads", "n_head_kv")  # do not count in the old designs
    if not grouped:
        return 1 if one else heads
    kv_heads = _positive_int(hf_config, "num_kv_heads", "n_head_kv", heads)
    if heads % kv_heads:
        raise hf_config.wrong("num_kv_heads", f"does not divide {heads} heads")
    return kv_heads


def _positive_int(hf_config: ConfigReader, key: str, old_key: str, default: int | None = None) -> int:
    """A key or, where that is absent, its old name."""
    if hf_config.has(old_key):
        return hf_config.positive_int(key, hf_config.positive_int(old_key))
    return hf_config.positive_int(key) if default is None else hf_config.positive_int(key, default)


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
