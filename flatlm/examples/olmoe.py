"""OLMoE (1B-7B): small experts, and queries and keys that are normalised over all heads at once.

Reference: transformers.OlmoeForCausalLM. Paper: Muennighoff et al. 2024 (arXiv 2409.02060).
"""

from pathlib import Path

from flatlm.examples import qwen3_moe
from flatlm.layers.config import (
    BlockConfig,
    MixtureConfig,
    ModelConfig,
    NormConfig,
    NormSpan,
    QueryKeyNormConfig,
)
from flatlm.utilities.configs.config_parts import read_feed_forward, read_heads, read_model, read_rope
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run

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
        attention = heads.attention(
            read_rope(hf_config, heads.width),
            bias=bias,
            qk_norm=QueryKeyNormConfig(norm, NormSpan.ALL),
            clip=hf_config.optional_float("clip_qkv", None),
        )
        experts, chosen = hf_config.positive_int("num_experts", 64), hf_config.positive_int("num_experts_per_tok", 8)
        mixture = MixtureConfig(read_feed_forward(hf_config), experts, chosen, hf_config.boolean("norm_topk_prob", False))
        return read_model(
            hf_config,
            (BlockConfig(attention, mixture, norm, norm),) * hf_config.positive_int("num_hidden_layers"),
            norm,
            max_positions=4096,
        )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
