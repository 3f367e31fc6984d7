"""Qwen2 and Qwen2.5, and what was made from them: Hammer, DeepSeek-R1's distillations into Qwen.

Llama's architecture with biases on queries, keys and values. Reference: transformers.Qwen2ForCausalLM.
Papers: Yang et al. 2024 (arXiv 2407.10671, 2412.15115).
"""

from dataclasses import replace
from pathlib import Path

from flatlm.examples.llama import TENSOR_NAMES
from flatlm.layers.config import BlockConfig, MaskConfig, ModelConfig, NormConfig
from flatlm.utilities.configs.config_parts import read_feed_forward, read_heads, read_model, read_qwen_windows, read_rope
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run

__all__ = ["TENSOR_NAMES", "Qwen2ConfigBuilder", "build_model", "define_and_run"]


class Qwen2ConfigBuilder(ConfigBuilder):
    """config.json of transformers.Qwen2Config."""

    family = "qwen2"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads, layers = read_heads(hf_config), hf_config.positive_int("num_hidden_layers")
        attention = heads.attention(read_rope(hf_config, heads.width), qkv_bias=True)
        norm = NormConfig(eps=hf_config.positive_float("rms_norm_eps", 1e-6))
        feed_forward = read_feed_forward(hf_config)
        hf_config.skip("use_mrope")  # of the published Qwen2.5: false, and for images where it is not
        return read_model(
            hf_config,
            tuple(
                BlockConfig(replace(attention, mask=MaskConfig(window)), feed_forward, norm, norm)
                for window in read_qwen_windows(hf_config, layers)
            ),
            norm,
            max_positions=32768,
        )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
