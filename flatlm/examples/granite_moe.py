"""Granite-MoE (3.0 and 3.1, 1B-A400M and 3B-A800M): Granite's multipliers around a mixture of experts that are stored as one tensor.

Reference: transformers.GraniteMoeForCausalLM.
"""

from dataclasses import replace
from pathlib import Path

from flatlm.examples import llama
from flatlm.examples.granite import GraniteConfigBuilder
from flatlm.layers.config import MixtureConfig, ModelConfig
from flatlm.utilities.configs.config_parts import read_feed_forward
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run

__all__ = ["TENSOR_NAMES", "GraniteMoeConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES = replace(
    llama.TENSOR_NAMES,
    router="model.layers.{}.block_sparse_moe.router.layer",
    expert_fused_gate_up_proj="model.layers.{}.block_sparse_moe.input_linear",
    expert_down_proj="model.layers.{}.block_sparse_moe.output_linear",
    stacked_experts=True,
)


class GraniteMoeConfigBuilder(ConfigBuilder):
    """config.json of transformers.GraniteMoeConfig: GraniteConfig's keys and defaults, and the mixture's."""

    family = "granite_moe"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        hf_config.skip("router_aux_loss_coef", "output_router_logits")
        model = GraniteConfigBuilder.build(hf_config, model_path)
        experts, chosen = hf_config.positive_int("num_local_experts", 8), hf_config.positive_int("num_experts_per_tok", 2)
        mixture = MixtureConfig(read_feed_forward(hf_config), experts, chosen)
        return replace(model, blocks=tuple(replace(block, feed_forward=mixture) for block in model.blocks))


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
