"""OLMoE (1B-7B): small experts, and queries and keys that are normalised over all heads at once.

Reference: transformers.OlmoeForCausalLM. Paper: Muennighoff et al. 2024 (arXiv 2409.02060).
"""

from pathlib import Path

from flatlm.examples import qwen3_moe
from flatlm.layers.config import (
    AttentionConfig,
    BlockConfig,
    MixtureConfig,
    ModelConfig,
    NormConfig,
    NormSpan,
    QueryKeyNormConfig,
)
from flatlm.utilities.config_parts import read_gated, read_heads, read_rope
from flatlm.utilities.config_reader import ConfigReader
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.registry import ConfigBuilder

__all__ = ["TENSOR_NAMES", "OlmoeConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES = qwen3_moe.TENSOR_NAMES


class OlmoeConfigBuilder(ConfigBuilder):
    """config.json of transformers.OlmoeConfig."""

    family = "olmoe"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads = read_heads(hf_config)
        hf_config.skip("router_aux_loss_coef", "output_router_logits")
        bias, norm = hf_config.boolean("attention_bias", False), NormConfig(eps=hf_config.positive_float("rms_norm_eps", 1e-5))
        attention = AttentionConfig(
            heads.query,
            heads.key_value,
            heads.width,
            read_rope(hf_config, heads.width),
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=QueryKeyNormConfig(norm, NormSpan.ALL),
            clip=hf_config.optional_float("clip_qkv", None),
        )
        experts, chosen = hf_config.positive_int("num_experts", 64), hf_config.positive_int("num_experts_per_tok", 8)
        mixture = MixtureConfig(read_gated(hf_config), experts, chosen, hf_config.boolean("norm_topk_prob", False))
        return ModelConfig(
            vocab_size=hf_config.positive_int("vocab_size"),
            embedding_dim=heads.dim,
            blocks=(BlockConfig(attention, mixture, norm, norm),) * hf_config.positive_int("num_hidden_layers"),
            max_positions=hf_config.positive_int("max_position_embeddings", 4096),
            final_norm=norm,
            tied_head=hf_config.boolean("tie_word_embeddings", False),
        )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
