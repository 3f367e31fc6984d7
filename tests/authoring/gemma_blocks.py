"""Gemma from FlatLM's blocks, registered from outside: a ConfigBuilder as lmdeploy's document writes one, and tensor names."""

from pathlib import Path
from typing import Any

from flatlm.authoring.config import AutoModelConfigBuilder
from flatlm.layers.config import Activation, AttentionConfig, BlockConfig, FeedForwardConfig, ModelConfig, NormConfig, RopeConfig
from flatlm.utilities.weights.tensor_names import TensorNames


class GemmaModelConfigBuilder(AutoModelConfigBuilder):
    family = "my_gemma"
    tensor_names = TensorNames(
        embedding="model.embed_tokens",
        final_norm="model.norm",
        pre_attn_norm="model.layers.{}.input_layernorm",
        attn_query_proj="model.layers.{}.self_attn.q_proj",
        attn_key_proj="model.layers.{}.self_attn.k_proj",
        attn_value_proj="model.layers.{}.self_attn.v_proj",
        attn_output_proj="model.layers.{}.self_attn.o_proj",
        pre_ff_norm="model.layers.{}.post_attention_layernorm",
        ff_gate_proj="model.layers.{}.mlp.gate_proj",
        ff_up_proj="model.layers.{}.mlp.up_proj",
        ff_down_proj="model.layers.{}.mlp.down_proj",
        norm_offset=1.0,
    )

    @classmethod
    def condition(cls, hf_config: Any) -> bool:
        return hf_config.model_type in ["gemma"]

    @classmethod
    def build(cls, hf_config: Any, model_path: Path | None = None) -> ModelConfig:
        norm = NormConfig(eps=hf_config.rms_norm_eps)
        rope = RopeConfig(hf_config.head_dim, hf_config.rope_theta)
        attention = AttentionConfig(hf_config.num_attention_heads, hf_config.num_key_value_heads, hf_config.head_dim, rope)
        assert not hf_config.attention_bias
        block = BlockConfig(attention, FeedForwardConfig(hf_config.intermediate_size, Activation(hf_config.hidden_act)), norm, norm)
        return ModelConfig(
            vocab_size=hf_config.vocab_size,
            embedding_dim=hf_config.hidden_size,
            blocks=(block,) * hf_config.num_hidden_layers,
            max_positions=hf_config.max_position_embeddings,
            final_norm=norm,
            tied_head=getattr(hf_config, "tie_word_embeddings", True),
            embedding_scale=hf_config.hidden_size**0.5,
        )
