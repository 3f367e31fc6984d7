"""Phi 1, 1.5 and 2: both branches read one layer norm; every projection has a bias, the head too; part of a head's entries turn.

Reference: transformers.PhiForCausalLM. Papers: Gunasekar et al. 2023 (arXiv 2306.11644), Li et al. 2023 (arXiv 2309.05463).
"""

from pathlib import Path

from flatlm.layers.config import BlockConfig, ModelConfig, NormConfig, NormKind, QueryKeyNormConfig
from flatlm.utilities.configs.config_parts import read_feed_forward, read_heads, read_model, read_rope
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.weights.tensor_names import TensorNames

__all__ = ["TENSOR_NAMES", "PhiConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES = TensorNames(
    embedding="model.embed_tokens",
    final_norm="model.final_layernorm",
    lm_head="lm_head",
    pre_attn_norm="model.layers.{}.input_layernorm",
    attn_query_proj="model.layers.{}.self_attn.q_proj",
    attn_key_proj="model.layers.{}.self_attn.k_proj",
    attn_value_proj="model.layers.{}.self_attn.v_proj",
    attn_output_proj="model.layers.{}.self_attn.dense",
    attn_query_norm="model.layers.{}.self_attn.q_layernorm",
    attn_key_norm="model.layers.{}.self_attn.k_layernorm",
    ff_up_proj="model.layers.{}.mlp.fc1",
    ff_down_proj="model.layers.{}.mlp.fc2",
)


class PhiConfigBuilder(ConfigBuilder):
    """config.json of transformers.PhiConfig."""

    family = "phi"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads, norm = read_heads(hf_config), NormConfig(NormKind.LAYER, hf_config.positive_float("layer_norm_eps", 1e-5), bias=True)
        attention = heads.attention(
            read_rope(hf_config, heads.width, partial=0.5),
            bias=True,
            qk_norm=QueryKeyNormConfig(norm) if hf_config.boolean("qk_layernorm", False) else None,
        )
        feed_forward = read_feed_forward(hf_config, default="gelu_new", gated=False, bias=True)
        block = BlockConfig(attention, feed_forward, norm, feed_forward_norm=None, parallel=True)
        return read_model(
            hf_config, (block,) * hf_config.positive_int("num_hidden_layers"), norm, max_positions=2048, vocab_size=51200, head_bias=True
        )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
