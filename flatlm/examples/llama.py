"""Llama: Llama 2, Llama 3, 3.1 and 3.2 (with their rope scaling), and every model of that architecture.

Reference: transformers.LlamaForCausalLM. Papers: Touvron et al. 2023 (arXiv 2307.09288), Grattafiori et al. 2024 (arXiv 2407.21783).
"""

from pathlib import Path

from flatlm.layers.config import (
    AttentionConfig,
    BlockConfig,
    FeedForwardConfig,
    Llama3Scaling,
    ModelConfig,
    NormConfig,
    RopeConfig,
)
from flatlm.utilities.configs.config_parts import read_feed_forward, read_heads, read_model, read_rope
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.weights.tensor_names import TensorNames

__all__ = ["TENSOR_NAMES", "LlamaConfigBuilder", "build_model", "define_and_run", "get_model_config"]

TENSOR_NAMES = TensorNames(
    embedding="model.embed_tokens",
    final_norm="model.norm",
    lm_head="lm_head",
    pre_attn_norm="model.layers.{}.input_layernorm",
    attn_query_proj="model.layers.{}.self_attn.q_proj",
    attn_key_proj="model.layers.{}.self_attn.k_proj",
    attn_value_proj="model.layers.{}.self_attn.v_proj",
    attn_output_proj="model.layers.{}.self_attn.o_proj",
    pre_ff_norm="model.layers.{}.post_attention_layernorm",
    ff_gate_proj="model.layers.{}.mlp.gate_proj",
    ff_up_proj="model.layers.{}.mlp.up_proj",
    ff_down_proj="model.layers.{}.mlp.down_proj",
    ignored=("model.layers.*.self_attn.rotary_emb.inv_freq",),  # tables that early checkpoints carried along
)


class LlamaConfigBuilder(ConfigBuilder):
    """config.json of transformers.LlamaConfig, in the old form (rope_theta, rope_scaling) and the new (rope_parameters)."""

    family = "llama"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads = read_heads(hf_config)
        hf_config.require("rope_interleaved", False)
        bias = hf_config.boolean("attention_bias", False)
        attention = heads.attention(read_rope(hf_config, heads.width), bias=bias)
        feed_forward = read_feed_forward(hf_config, bias=hf_config.boolean("mlp_bias", False))
        norm = NormConfig(eps=hf_config.positive_float("rms_norm_eps", 1e-6))
        return read_model(
            hf_config,
            (BlockConfig(attention, feed_forward, norm, norm),) * hf_config.positive_int("num_hidden_layers"),
            norm,
            max_positions=2048,
        )


def get_model_config() -> ModelConfig:
    """Llama 3.2 1B, as published."""
    scaling = Llama3Scaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192)
    attention = AttentionConfig(num_query_heads=32, num_kv_heads=8, head_dim=64, rope=RopeConfig(64, 500000.0, scaling))
    block = BlockConfig(attention, FeedForwardConfig(8192))
    return ModelConfig(vocab_size=128256, embedding_dim=2048, blocks=(block,) * 16, max_positions=131072, tied_head=True)


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
