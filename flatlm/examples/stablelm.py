"""StableLM: StableLM 3B 4E1T, Zephyr 3B, StableLM 2 1.6B and 12B, Stable Code 3B.

Reference: transformers.StableLmForCausalLM. Papers: Tow et al. 2023, "StableLM 3B 4E1T"; Bellagente et al. 2024 (arXiv 2402.17834).
"""

from pathlib import Path

from flatlm.layers.config import (
    AttentionConfig,
    BlockConfig,
    FeedForwardConfig,
    ModelConfig,
    NormConfig,
    NormKind,
    QueryKeyNormConfig,
)
from flatlm.utilities.config_parts import ACTIVATIONS, read_heads, read_rope
from flatlm.utilities.config_reader import ConfigReader
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.registry import ConfigBuilder
from flatlm.utilities.tensor_names import TensorNames

__all__ = ["TENSOR_NAMES", "StableLmConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES = TensorNames(
    embedding="model.embed_tokens",
    final_norm="model.norm",
    lm_head="lm_head",
    pre_attn_norm="model.layers.{}.input_layernorm",
    attn_query_proj="model.layers.{}.self_attn.q_proj",
    attn_key_proj="model.layers.{}.self_attn.k_proj",
    attn_value_proj="model.layers.{}.self_attn.v_proj",
    attn_output_proj="model.layers.{}.self_attn.o_proj",
    attn_query_norm="model.layers.{}.self_attn.q_layernorm.norms.{}",
    attn_key_norm="model.layers.{}.self_attn.k_layernorm.norms.{}",
    pre_ff_norm="model.layers.{}.post_attention_layernorm",
    ff_gate_proj="model.layers.{}.mlp.gate_proj",
    ff_up_proj="model.layers.{}.mlp.up_proj",
    ff_down_proj="model.layers.{}.mlp.down_proj",
    head_norms_apart=True,
    ignored=("model.layers.*.self_attn.rotary_emb.inv_freq",),  # tables that early checkpoints carried along
)


class StableLmConfigBuilder(ConfigBuilder):
    """config.json of transformers.StableLmConfig, and of the StableLMEpochForCausalLM that came first (rope_pct, norm_eps)."""

    family = "stablelm"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads, max_positions = read_heads(hf_config), hf_config.positive_int("max_position_embeddings", 4096)
        hf_config.require("rotary_scaling_factor", 1.0)
        eps = hf_config.positive_float("layer_norm_eps", hf_config.positive_float("norm_eps", 1e-5))
        norm = NormConfig(NormKind.LAYER, eps, bias=True)
        head_norm = NormConfig(NormKind.LAYER, eps)
        attention = AttentionConfig(
            heads.query,
            heads.key_value,
            heads.width,
            read_rope(hf_config, heads.width, partial=hf_config.positive_float("rope_pct", 0.25)),
            qkv_bias=hf_config.boolean("use_qkv_bias", False),
            qk_norm=QueryKeyNormConfig(head_norm) if hf_config.boolean("qk_layernorm", False) else None,
        )
        feed_forward = FeedForwardConfig(hf_config.positive_int("intermediate_size"), hf_config.choice("hidden_act", ACTIVATIONS, "silu"))
        parallel = hf_config.boolean("use_parallel_residual", False)
        block = BlockConfig(attention, feed_forward, norm, None if parallel else norm, parallel=parallel)
        return ModelConfig(
            vocab_size=hf_config.positive_int("vocab_size"),
            embedding_dim=heads.dim,
            blocks=(block,) * hf_config.positive_int("num_hidden_layers"),
            max_positions=max_positions,
            final_norm=norm,
            tied_head=hf_config.boolean("tie_word_embeddings", False),
        )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
