"""GLM-4-0414 (GLM-4-9B-0414, GLM-4-32B-0414, GLM-Z1): GLM-4's block with a norm behind each branch as well.

Reference: transformers.Glm4ForCausalLM. Paper: GLM Team 2024 (arXiv 2406.12793).
"""

from dataclasses import replace
from pathlib import Path

from flatlm.examples import glm
from flatlm.layers.config import ModelConfig
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.weights.tensor_names import TensorNames

__all__ = ["TENSOR_NAMES", "Glm4ConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES: TensorNames = replace(
    glm.TENSOR_NAMES,
    post_attn_norm="model.layers.{}.post_self_attn_layernorm",
    post_ff_norm="model.layers.{}.post_mlp_layernorm",
)


class Glm4ConfigBuilder(ConfigBuilder):
    """config.json of transformers.Glm4Config, which has GlmConfig's keys and defaults."""

    family = "glm4"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        model = glm.GlmConfigBuilder.build(hf_config, model_path)
        norm = model.final_norm
        blocks = tuple(replace(block, attention_post_norm=norm, feed_forward_post_norm=norm) for block in model.blocks)
        return replace(model, blocks=blocks)


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
