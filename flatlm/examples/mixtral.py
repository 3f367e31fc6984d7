"""Mixtral: Mistral with a mixture of experts in the place of each feed-forward.

Reference: transformers.MixtralForCausalLM. Paper: Jiang et al. 2024 (arXiv 2401.04088).
"""

from dataclasses import replace
from pathlib import Path

from flatlm.examples import llama
from flatlm.layers.config import BlockConfig, MaskConfig, MixtureConfig, ModelConfig, NormConfig
from flatlm.utilities.configs.config_parts import read_feed_forward, read_heads, read_model, read_rope
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run

__all__ = ["TENSOR_NAMES", "MixtralConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES = replace(
    llama.TENSOR_NAMES,
    router="model.layers.{}.block_sparse_moe.gate",
    expert_gate_proj="model.layers.{}.block_sparse_moe.experts.{}.w1",
    expert_up_proj="model.layers.{}.block_sparse_moe.experts.{}.w3",
    expert_down_proj="model.layers.{}.block_sparse_moe.experts.{}.w2",
)


class MixtralConfigBuilder(ConfigBuilder):
    """config.json of transformers.MixtralConfig."""

    family = "mixtral"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads = read_heads(hf_config)
        hf_config.skip("router_aux_loss_coef", "router_jitter_noise", "output_router_logits")
        mask = MaskConfig(hf_config.optional_int("sliding_window", None))
        attention = heads.attention(read_rope(hf_config, heads.width, base=1e6), mask=mask)
        norm = NormConfig(eps=hf_config.positive_float("rms_norm_eps", 1e-5))
        experts, chosen = hf_config.positive_int("num_local_experts", 8), hf_config.positive_int("num_experts_per_tok", 2)
        mixture = MixtureConfig(read_feed_forward(hf_config), experts, chosen)
        return read_model(
            hf_config,
            (BlockConfig(attention, mixture, norm, norm),) * hf_config.positive_int("num_hidden_layers"),
            norm,
            max_positions=131072,
        )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
