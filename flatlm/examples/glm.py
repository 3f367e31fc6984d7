"""GLM-4-9B and GLM-Edge: Llama's block with biased queries, keys and values; the first half of a head's entries turns, in pairs.

Reference: transformers.GlmForCausalLM. Paper: GLM Team 2024 (arXiv 2406.12793).
"""

from dataclasses import replace
from pathlib import Path

from flatlm.examples import llama
from flatlm.layers.config import BlockConfig, ModelConfig, NormConfig
from flatlm.utilities.configs.config_parts import read_feed_forward, read_heads, read_model, read_rope
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.weights.tensor_names import TensorNames

__all__ = ["TENSOR_NAMES", "GlmConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES: TensorNames = replace(
    llama.TENSOR_NAMES,
    ff_gate_proj=None,
    ff_up_proj=None,
    ff_fused_gate_up_proj="model.layers.{}.mlp.gate_up_proj",
    interleaved_rope=True,
)


class GlmConfigBuilder(ConfigBuilder):
    """config.json of transformers.GlmConfig."""

    family = "glm"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads = read_heads(hf_config, default_width=128)
        hf_config.positive_int("num_key_value_heads")  # left out, it means 2
        rope = read_rope(hf_config, heads.width, partial=0.5)
        attention = heads.attention(rope, qkv_bias=hf_config.boolean("attention_bias", True))
        norm = NormConfig(eps=hf_config.positive_float("rms_norm_eps", 1.5625e-07))
        return read_model(
            hf_config,
            (BlockConfig(attention, read_feed_forward(hf_config), norm, norm),) * hf_config.positive_int("num_hidden_layers"),
            norm,
            max_positions=131072,
            vocab_size=151552,
        )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
