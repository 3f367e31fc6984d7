"""Phi 3, 3.5, 4 and 4-mini: Llama's block with fused projections, and LongRoPE in the models for long contexts.

Reference: transformers.Phi3ForCausalLM. Papers: Abdin et al. 2024 (arXiv 2404.14219, 2412.08905).
"""

from dataclasses import replace
from pathlib import Path

from flatlm.examples import llama
from flatlm.layers.config import BlockConfig, LongRopeScaling, MaskConfig, ModelConfig, NormConfig, RopeConfig
from flatlm.utilities.configs.config_parts import read_feed_forward, read_heads, read_model, read_rope
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.weights.tensor_names import TensorNames

__all__ = ["TENSOR_NAMES", "Phi3ConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES: TensorNames = replace(
    llama.TENSOR_NAMES,
    attn_query_proj=None,
    attn_key_proj=None,
    attn_value_proj=None,
    attn_fused_qkv_proj="model.layers.{}.self_attn.qkv_proj",
    ff_gate_proj=None,
    ff_up_proj=None,
    ff_fused_gate_up_proj="model.layers.{}.mlp.gate_up_proj",
)


class Phi3ConfigBuilder(ConfigBuilder):
    """config.json of transformers.Phi3Config. Keys that it does not read must have their neutral value."""

    family = "phi3"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads = read_heads(hf_config)
        for key in ("attention_bias", "mlp_bias", "lm_head_bias"):
            hf_config.require(key, False)
        for key in ("full_attn_mod", "interpolate_factor"):
            hf_config.require(key, 1)
        mask = MaskConfig(hf_config.optional_int("sliding_window", None))
        attention = heads.attention(read_longrope(hf_config, heads.width), mask=mask)
        norm = NormConfig(eps=hf_config.positive_float("rms_norm_eps", 1e-5))
        return read_model(
            hf_config,
            (BlockConfig(attention, read_feed_forward(hf_config), norm, norm),) * hf_config.positive_int("num_hidden_layers"),
            norm,
            max_positions=4096,
            vocab_size=32064,
        )


def read_longrope(hf_config: ConfigReader, width: int) -> RopeConfig:
    """A rotary embedding that is unscaled, or scaled by LongRoPE. The original length stands outside `rope_parameters`."""
    rope, original = read_rope(hf_config, width), hf_config.positive_int("original_max_position_embeddings", 4096)
    match rope.scaling:
        case None:
            return rope
        case LongRopeScaling(original_max_positions=stated) if stated == original:
            return rope
        case LongRopeScaling(original_max_positions=stated):
            raise hf_config.wrong("original_max_position_embeddings", f"(4096 if absent) is not the {stated} of the rope's own keys")
        case _:
            raise hf_config.wrong(
                "rope_parameters" if hf_config.has("rope_parameters") else "rope_scaling", "is not supported; longrope is"
            )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
