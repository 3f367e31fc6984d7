"""Mistral: Llama's architecture, in its first version with a window of 4096 tokens.

Reference: transformers.MistralForCausalLM. Paper: Jiang et al. 2023 (arXiv 2310.06825).
"""

from pathlib import Path

from flatlm.examples.llama import TENSOR_NAMES
from flatlm.layers.config import BlockConfig, MaskConfig, ModelConfig, NormConfig
from flatlm.utilities.configs.config_parts import read_feed_forward, read_heads, read_model, read_rope
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run

__all__ = ["TENSOR_NAMES", "MistralConfigBuilder", "build_model", "define_and_run"]


class MistralConfigBuilder(ConfigBuilder):
    """config.json of transformers.MistralConfig."""

    family = "mistral"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads = read_heads(hf_config)
        window = hf_config.optional_int("sliding_window", 4096)
        rope = read_rope(hf_config, heads.width)
        attention = heads.attention(rope, mask=MaskConfig(window))
        norm = NormConfig(eps=hf_config.positive_float("rms_norm_eps", 1e-6))
        block = BlockConfig(attention, read_feed_forward(hf_config), norm, norm)
        return read_model(hf_config, (block,) * hf_config.positive_int("num_hidden_layers"), norm, max_positions=131072)


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
