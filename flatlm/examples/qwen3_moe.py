"""Qwen3-MoE (30B-A3B, 235B-A22B): Qwen3 with many small experts.

Reference: transformers.Qwen3MoeForCausalLM. Paper: Yang et al. 2025 (arXiv 2505.09388).
"""

from dataclasses import replace
from pathlib import Path

from flatlm.examples import qwen3
from flatlm.examples.qwen3 import read_attention
from flatlm.layers.config import BlockConfig, MaskConfig, MixtureConfig, ModelConfig, NormConfig
from flatlm.utilities.configs.config_parts import read_feed_forward, read_model
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run

__all__ = ["TENSOR_NAMES", "Qwen3MoeConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES = replace(
    qwen3.TENSOR_NAMES,
    router="model.layers.{}.mlp.gate",
    expert_gate_proj="model.layers.{}.mlp.experts.{}.gate_proj",
    expert_up_proj="model.layers.{}.mlp.experts.{}.up_proj",
    expert_down_proj="model.layers.{}.mlp.experts.{}.down_proj",
)


class Qwen3MoeConfigBuilder(ConfigBuilder):
    """config.json of transformers.Qwen3MoeConfig. Layers of `mlp_only_layers`, or between the sparse steps, have a plain feed-forward."""

    family = "qwen3_moe"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        layers = hf_config.positive_int("num_hidden_layers")
        hf_config.skip("router_aux_loss_coef", "output_router_logits", "max_window_layers")
        norm = NormConfig(eps=hf_config.positive_float("rms_norm_eps", 1e-6))
        window = hf_config.optional_int("sliding_window", 4096)
        mask = MaskConfig(window if hf_config.boolean("use_sliding_window", False) else None)
        attention = replace(read_attention(hf_config, norm), mask=mask)
        local = hf_config.positive_int("num_local_experts", 128)  # as newer versions of transformers write it
        experts, chosen = hf_config.positive_int("num_experts", local), hf_config.positive_int("num_experts_per_tok", 8)
        mixture = MixtureConfig(
            read_feed_forward(hf_config, width="moe_intermediate_size"), experts, chosen, hf_config.boolean("norm_topk_prob", False)
        )
        plain, step = read_feed_forward(hf_config), hf_config.positive_int("decoder_sparse_step", 1)
        dense = {*hf_config.wholes("mlp_only_layers", []), *(layer for layer in range(layers) if (layer + 1) % step)}
        return read_model(
            hf_config,
            tuple(BlockConfig(attention, plain if layer in dense else mixture, norm, norm) for layer in range(layers)),
            norm,
            max_positions=32768,
        )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
