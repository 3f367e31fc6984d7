"""OLMo 2: 1B, 7B, 13B and 32B. What a branch gives is normalised, not what it reads, and queries and keys over all heads at once.

Reference: transformers.Olmo2ForCausalLM. Paper: OLMo team 2025 (arXiv 2501.00656).
"""

from pathlib import Path

from flatlm.layers.config import (
    AttentionConfig,
    BlockConfig,
    FeedForwardConfig,
    MaskConfig,
    ModelConfig,
    NormConfig,
    NormSpan,
    QueryKeyNormConfig,
    RopeConfig,
)
from flatlm.utilities.config_parts import ACTIVATIONS, Heads, read_heads, read_rope
from flatlm.utilities.config_reader import ConfigReader
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.registry import ConfigBuilder
from flatlm.utilities.tensor_names import TensorNames

__all__ = ["TENSOR_NAMES", "Olmo2ConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES = TensorNames(
    embedding="model.embed_tokens",
    final_norm="model.norm",
    lm_head="lm_head",
    attn_query_proj="model.layers.{}.self_attn.q_proj",
    attn_key_proj="model.layers.{}.self_attn.k_proj",
    attn_value_proj="model.layers.{}.self_attn.v_proj",
    attn_output_proj="model.layers.{}.self_attn.o_proj",
    attn_query_norm="model.layers.{}.self_attn.q_norm",
    attn_key_norm="model.layers.{}.self_attn.k_norm",
    post_attn_norm="model.layers.{}.post_attention_layernorm",
    ff_gate_proj="model.layers.{}.mlp.gate_proj",
    ff_up_proj="model.layers.{}.mlp.up_proj",
    ff_down_proj="model.layers.{}.mlp.down_proj",
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
    feed_forward = FeedForwardConfig(hf_config.positive_int("intermediate_size"), hf_config.choice("hidden_act", ACTIVATIONS, "silu"))

    def block(mask: MaskConfig, rope: RopeConfig) -> BlockConfig:
        attention = AttentionConfig(
            heads.query,
            heads.key_value,
            heads.width,
            rope,
            qkv_bias=bias,
            output_bias=bias,
            mask=mask,
            qk_norm=QueryKeyNormConfig(norm, NormSpan.ALL),
        )
        return BlockConfig(attention, feed_forward, None, None, attention_post_norm=norm, feed_forward_post_norm=norm)

    blocks = tuple(block(mask, rope) for mask, rope in layers)
    count = hf_config.positive_int("num_hidden_layers")
    return ModelConfig(
        vocab_size=hf_config.positive_int("vocab_size"),
        embedding_dim=heads.dim,
        blocks=blocks * count if len(blocks) == 1 else blocks,
        max_positions=hf_config.positive_int("max_position_embeddings", 2048),
        final_norm=norm,
        tied_head=hf_config.boolean("tie_word_embeddings", False),
    )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
