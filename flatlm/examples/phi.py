"""Phi 1, 1.5 and 2: both branches read one layer norm; every projection has a bias, the head too; part of a head's entries turn.

Reference: transformers.PhiForCausalLM. Papers: Gunasekar et al. 2023 (arXiv 2306.11644), Li et al. 2023 (arXiv 2309.05463).
"""

from pathlib import Path

from flatlm.layers.config import AttentionConfig, BlockConfig, FeedForwardConfig, ModelConfig, NormConfig, NormKind, QueryKeyNormConfig
from flatlm.utilities.config_parts import ACTIVATIONS, read_heads, read_rope
from flatlm.utilities.config_reader import ConfigReader
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.registry import ConfigBuilder
from flatlm.utilities.tensor_names import TensorNames

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
        attention = AttentionConfig(
            heads.query,
            heads.key_value,
            heads.width,
            read_rope(hf_config, heads.width, partial=0.5),
            qkv_bias=True,
            output_bias=True,
            qk_norm=QueryKeyNormConfig(norm) if hf_config.boolean("qk_layernorm", False) else None,
        )
        feed_forward = FeedForwardConfig(
            hf_config.positive_int("intermediate_size"), hf_config.choice("hidden_act", ACTIVATIONS, "gelu_new"), gated=False, bias=True
        )
        block = BlockConfig(attention, feed_forward, norm, feed_forward_norm=None, parallel=True)
        return ModelConfig(
            vocab_size=hf_config.positive_int("vocab_size", 51200),
            embedding_dim=heads.dim,
            blocks=(block,) * hf_config.positive_int("num_hidden_layers"),
            max_positions=hf_config.positive_int("max_position_embeddings", 2048),
            final_norm=norm,
            tied_head=hf_config.boolean("tie_word_embeddings", False),
            head_bias=True,
        )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
