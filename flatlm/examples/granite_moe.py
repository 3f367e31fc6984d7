"""Granite-MoE (3.0 and 3.1, 1B-A400M and 3B-A800M): Granite's multipliers around a mixture of experts that are stored as one tensor.

Reference: transformers.GraniteMoeForCausalLM.
"""

from dataclasses import replace
from pathlib import Path

from flatlm.examples import llama
from flatlm.layers.config import AttentionConfig, BlockConfig, MixtureConfig, ModelConfig, NormConfig
from flatlm.utilities.config_parts import read_gated, read_heads, read_rope
from flatlm.utilities.config_reader import ConfigReader
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.registry import ConfigBuilder

__all__ = ["TENSOR_NAMES", "GraniteMoeConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES = replace(
    llama.TENSOR_NAMES,
    router="model.layers.{}.block_sparse_moe.router.layer",
    expert_fused_gate_up_proj="model.layers.{}.block_sparse_moe.input_linear",
    expert_down_proj="model.layers.{}.block_sparse_moe.output_linear",
    stacked_experts=True,
)


class GraniteMoeConfigBuilder(ConfigBuilder):
    """config.json of transformers.GraniteMoeConfig."""

    family = "granite_moe"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads = read_heads(hf_config)
        hf_config.skip("router_aux_loss_coef", "output_router_logits")
        bias, norm = hf_config.boolean("attention_bias", False), NormConfig(eps=hf_config.positive_float("rms_norm_eps", 1e-6))
        attention = AttentionConfig(
            heads.query,
            heads.key_value,
            heads.width,
            read_rope(hf_config, heads.width),
            qkv_bias=bias,
            output_bias=bias,
            scale=hf_config.positive_float("attention_multiplier", 1.0),
        )
        experts, chosen = hf_config.positive_int("num_local_experts", 8), hf_config.positive_int("num_experts_per_tok", 2)
        block = BlockConfig(
            attention,
            MixtureConfig(read_gated(hf_config), experts, chosen),
            norm,
            norm,
            residual_scale=hf_config.positive_float("residual_multiplier", 1.0),
        )
        return ModelConfig(
            vocab_size=hf_config.positive_int("vocab_size"),
            embedding_dim=heads.dim,
            blocks=(block,) * hf_config.positive_int("num_hidden_layers"),
            max_positions=hf_config.positive_int("max_position_embeddings", 2048),
            final_norm=norm,
            tied_head=hf_config.boolean("tie_word_embeddings", False),
            embedding_scale=hf_config.positive_float("embedding_multiplier", 1.0),
            logit_scale=1 / hf_config.positive_float("logits_scaling", 1.0),
        )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
