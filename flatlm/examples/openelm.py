"""OpenELM: layers of different widths: each has its own number of heads and its own feed-forward.

Reference: modeling_openelm.py of apple/OpenELM on Hugging Face (transformers has no class of its own). Paper: Mehta et al. 2024
(arXiv 2404.14619).
"""

from pathlib import Path

from flatlm.layers.config import AttentionConfig, BlockConfig, FeedForwardConfig, ModelConfig, NormConfig, QueryKeyNormConfig, RopeConfig
from flatlm.utilities.configs.config_parts import ACTIVATIONS
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.weights.tensor_names import TensorNames

__all__ = ["TENSOR_NAMES", "OpenElmConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES = TensorNames(
    embedding="transformer.token_embeddings",
    final_norm="transformer.norm",
    lm_head="lm_head",
    pre_attn_norm="transformer.layers.{}.attn_norm",
    attn_fused_qkv_proj="transformer.layers.{}.attn.qkv_proj",
    attn_query_norm="transformer.layers.{}.attn.q_norm",
    attn_key_norm="transformer.layers.{}.attn.k_norm",
    attn_output_proj="transformer.layers.{}.attn.out_proj",
    pre_ff_norm="transformer.layers.{}.ffn_norm",
    ff_up_proj="transformer.layers.{}.ffn.proj_1",
    ff_fused_gate_up_proj="transformer.layers.{}.ffn.proj_1",
    ff_down_proj="transformer.layers.{}.ffn.proj_2",
)
NORM = NormConfig(eps=1e-6)


class OpenElmConfigBuilder(ConfigBuilder):
    """config.json of OpenELMConfig, which spells out what its multipliers give for each layer."""

    family = "openelm"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        dim, width, layers = (hf_config.positive_int(key) for key in ("model_dim", "head_dim", "num_transformer_layers"))
        if width % 2:
            raise hf_config.wrong("head_dim", "must be even: rotary embedding turns pairs")
        hf_config.require("normalization_layer_name", "rms_norm")
        hf_config.skip("qkv_multipliers", "num_gqa_groups", "rope_max_length")  # the lists, and max_context_length, follow from them
        return ModelConfig(
            vocab_size=hf_config.positive_int("vocab_size"),
            embedding_dim=dim,
            blocks=tuple(
                BlockConfig(attention, feed_forward, NORM, NORM)
                for attention, feed_forward in zip(
                    read_attentions(hf_config, layers, width), read_feed_forwards(hf_config, layers, dim), strict=True
                )
            ),
            max_positions=hf_config.positive_int("max_context_length", 2048),
            final_norm=NORM,
            tied_head=hf_config.boolean("share_input_output_layers", True),
        )


def read_attentions(hf_config: ConfigReader, layers: int, width: int) -> list[AttentionConfig]:
    """Each layer's, from `num_query_heads` and `num_kv_heads`."""
    rope = RopeConfig(width, hf_config.positive_float("rope_freq_constant", 10000.0))
    qk_norm = QueryKeyNormConfig(NORM) if hf_config.boolean("normalize_qk_projections") else None
    heads, kv_heads = hf_config.positive_ints("num_query_heads"), hf_config.positive_ints("num_kv_heads")
    for key, counts in (("num_query_heads", heads), ("num_kv_heads", kv_heads)):
        if len(counts) != layers:
            raise hf_config.wrong(key, f"must have {layers} numbers, one for each layer")
    if any(query % key_value for query, key_value in zip(heads, kv_heads, strict=True)):
        raise hf_config.wrong("num_kv_heads", "must divide num_query_heads in every layer")
    return [AttentionConfig(*counts, width, rope, qk_norm=qk_norm) for counts in zip(heads, kv_heads, strict=True)]


def read_feed_forwards(hf_config: ConfigReader, layers: int, dim: int) -> list[FeedForwardConfig]:
    """Each layer's, its width from `ffn_multipliers` and `ffn_dim_divisor`."""
    multipliers, divisor = hf_config.positive_floats("ffn_multipliers"), hf_config.positive_int("ffn_dim_divisor", 256)
    if len(multipliers) != layers:
        raise hf_config.wrong("ffn_multipliers", f"must have {layers} numbers, one for each layer")
    activation, gated = hf_config.choice("activation_fn_name", ACTIVATIONS, "swish"), hf_config.boolean("ffn_with_glu", True)
    return [FeedForwardConfig(make_divisible(multiplier * dim, divisor), activation, gated) for multiplier in multipliers]


def make_divisible(value: float, divisor: int) -> int:
    """The nearest multiple of `divisor`, or the next where that is less than nine tenths of `value`."""
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * value else nearest + divisor


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
