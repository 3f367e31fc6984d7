"""OLMo 2: 1B, 7B, 13B and 32B. What a branch gives is normalised, not what it reads, and queries and keys over all heads at once.

Reference: transformers.Olmo2ForCausalLM. Paper: OLMo team 2025 (arXiv 2501.00656).
"""

from dataclasses import replace
from pathlib import Path

from flatlm.examples import llama
from flatlm.layers.config import (
    BlockConfig,
    MaskConfig,
    ModelConfig,
    NormConfig,
    NormSpan,
    QueryKeyNormConfig,
    RopeConfig,
)
from flatlm.utilities.configs.config_parts import Heads, read_feed_forward, read_heads, read_model, read_rope
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run

__all__ = ["TENSOR_NAMES", "Olmo2ConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES = replace(
    llama.TENSOR_NAMES,
    pre_attn_norm=None,
    attn_query_norm="model.layers.{}.self_attn.q_norm",
    attn_key_norm="model.layers.{}.self_attn.k_norm",
    post_attn_norm="model.layers.{}.post_attention_layernorm",
    pre_ff_norm=None,
    post_ff_norm="model.layers.{}.post_feedforward_layernorm",
)


class Olmo2ConfigBuilder(ConfigBuilder):
    """config.json of transformers.Olmo2Config."""

    family = "olmo2"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads = read_heads(hf_config)
        return build_from_layers(hf_config, heads, [(MaskConfig(), read_rope(hf_config, heads.width))])


def build_from_layers(hf_config: ConfigReader, heads: Heads, layers: list[tuple[MaskConfig, RopeConfig]]) -> ModelConfig:
    """`layers`: what each may see and how it is turned; one for all, or one for each."""
    bias, norm = hf_config.boolean("attention_bias", False), NormConfig(eps=hf_config.positive_float("rms_norm_eps", 1e-5))
    feed_forward = read_feed_forward(hf_config)

    def block(mask: MaskConfig, rope: RopeConfig) -> BlockConfig:
        attention = heads.attention(
            rope,
            bias=bias,
            mask=mask,
            qk_norm=QueryKeyNormConfig(norm, NormSpan.ALL),
        )
        return BlockConfig(attention, feed_forward, None, None, attention_post_norm=norm, feed_forward_post_norm=norm)

    blocks = tuple(block(mask, rope) for mask, rope in layers)
    count = hf_config.positive_int("num_hidden_layers")
    return read_model(hf_config, blocks * count if len(blocks) == 1 else blocks, norm, max_positions=2048)


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
