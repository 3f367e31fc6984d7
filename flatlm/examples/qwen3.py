"""Qwen3: queries and keys are normalised head by head; no biases.

Reference: transformers.Qwen3ForCausalLM. Paper: Yang et al. 2025 (arXiv 2505.09388).
"""

from dataclasses import replace
from pathlib import Path

from flatlm.examples import llama
from flatlm.layers.config import AttentionConfig, BlockConfig, MaskConfig, ModelConfig, NormConfig, QueryKeyNormConfig
from flatlm.utilities.configs.config_parts import read_feed_forward, read_heads, read_model, read_qwen_windows, read_rope
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run

__all__ = ["TENSOR_NAMES", "Qwen3ConfigBuilder", "build_model", "define_and_run", "read_attention"]

TENSOR_NAMES = replace(
    llama.TENSOR_NAMES,
    attn_query_norm="model.layers.{}.self_attn.q_norm",
    attn_key_norm="model.layers.{}.self_attn.k_norm",
)


class Qwen3ConfigBuilder(ConfigBuilder):
    """config.json of transformers.Qwen3Config."""

    family = "qwen3"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        layers = hf_config.positive_int("num_hidden_layers")
        norm = NormConfig(eps=hf_config.positive_float("rms_norm_eps", 1e-6))
        attention, feed_forward = read_attention(hf_config, norm), read_feed_forward(hf_config)
        return read_model(
            hf_config,
            tuple(
                BlockConfig(replace(attention, mask=MaskConfig(window)), feed_forward, norm, norm)
                for window in read_qwen_windows(hf_config, layers)
            ),
            norm,
            max_positions=32768,
        )


def read_attention(hf_config: ConfigReader, norm: NormConfig) -> AttentionConfig:
    """Qwen3's attention, that of its mixtures too."""
    heads = read_heads(hf_config, default_width=128)
    bias = hf_config.boolean("attention_bias", False)
    rope = read_rope(hf_config, heads.width)
    return heads.attention(rope, bias=bias, qk_norm=QueryKeyNormConfig(norm))


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
