"""Granite 3.0 to 3.3 (dense): Llama's block with multipliers for the embedding, the branches, the scores and the logits.

Reference: transformers.GraniteForCausalLM. Paper: Shen et al. 2024 (arXiv 2408.13359).
"""

from dataclasses import replace
from pathlib import Path

from flatlm.examples.llama import TENSOR_NAMES, LlamaConfigBuilder
from flatlm.layers.config import ModelConfig
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run

__all__ = ["TENSOR_NAMES", "GraniteConfigBuilder", "build_model", "define_and_run"]


class GraniteConfigBuilder(ConfigBuilder):
    """config.json of transformers.GraniteConfig: LlamaConfig's keys and defaults, and the multipliers."""

    family = "granite"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        model = LlamaConfigBuilder.build(hf_config, model_path)
        scale, residual = (hf_config.positive_float(key, 1.0) for key in ("attention_multiplier", "residual_multiplier"))
        blocks = tuple(replace(block, attention=replace(block.attention, scale=scale), residual_scale=residual) for block in model.blocks)
        return replace(
            model,
            blocks=blocks,
            embedding_scale=hf_config.positive_float("embedding_multiplier", 1.0),
            logit_scale=1 / hf_config.positive_float("logits_scaling", 1.0),
        )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
