"""OLMo: OLMo 1B and 7B, which normalise without weights.

Reference: transformers.OlmoForCausalLM. Paper: Groeneveld et al. 2024 (arXiv 2402.00838).
"""

from dataclasses import replace
from pathlib import Path

from flatlm.examples import llama
from flatlm.layers.config import BlockConfig, ModelConfig, NormConfig, NormKind
from flatlm.utilities.configs.config_parts import read_feed_forward, read_heads, read_model, read_rope
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run

__all__ = ["TENSOR_NAMES", "OlmoConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES = replace(llama.TENSOR_NAMES, pre_attn_norm=None, pre_ff_norm=None)  # its norms have no tensors


class OlmoConfigBuilder(ConfigBuilder):
    """config.json of transformers.OlmoConfig."""

    family = "olmo"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads = read_heads(hf_config)
        bias = hf_config.boolean("attention_bias", False)
        attention = heads.attention(
            read_rope(hf_config, heads.width),
            bias=bias,
            clip=hf_config.positive_float("clip_qkv") if hf_config.has("clip_qkv") else None,
        )
        feed_forward = read_feed_forward(hf_config)
        norm = NormConfig(NormKind.LAYER, 1e-5, weight=False)
        return read_model(
            hf_config,
            (BlockConfig(attention, feed_forward, norm, norm),) * hf_config.positive_int("num_hidden_layers"),
            norm,
            max_positions=2048,
        )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
