"""StableLM: StableLM 3B 4E1T, Zephyr 3B, StableLM 2 1.6B and 12B, Stable Code 3B.

Reference: transformers.StableLmForCausalLM. Papers: Tow et al. 2023, "StableLM 3B 4E1T"; Bellagente et al. 2024 (arXiv 2402.17834).
"""

from dataclasses import replace
from pathlib import Path

from flatlm.examples import llama
from flatlm.layers.config import (
    BlockConfig,
    ModelConfig,
    NormConfig,
    NormKind,
    QueryKeyNormConfig,
)
from flatlm.utilities.configs.config_parts import read_feed_forward, read_heads, read_model, read_rope
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run

__all__ = ["TENSOR_NAMES", "StableLmConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES = replace(
    llama.TENSOR_NAMES,
    attn_query_norm="model.layers.{}.self_attn.q_layernorm.norms.{}",
    attn_key_norm="model.layers.{}.self_attn.k_layernorm.norms.{}",
    head_norms_apart=True,
)


class StableLmConfigBuilder(ConfigBuilder):
    """config.json of transformers.StableLmConfig, and of the StableLMEpochForCausalLM that came first (rope_pct, norm_eps)."""

    family = "stablelm"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads = read_heads(hf_config)
        hf_config.require("rotary_scaling_factor", 1.0)
        eps = hf_config.positive_float("layer_norm_eps", hf_config.positive_float("norm_eps", 1e-5))
        norm = NormConfig(NormKind.LAYER, eps, bias=True)
        head_norm = NormConfig(NormKind.LAYER, eps)
        attention = heads.attention(
            read_rope(hf_config, heads.width, partial=hf_config.positive_float("rope_pct", 0.25)),
            qkv_bias=hf_config.boolean("use_qkv_bias", False),
            qk_norm=QueryKeyNormConfig(head_norm) if hf_config.boolean("qk_layernorm", False) else None,
        )
        feed_forward = read_feed_forward(hf_config)
        parallel = hf_config.boolean("use_parallel_residual", False)
        block = BlockConfig(attention, feed_forward, norm, None if parallel else norm, parallel=parallel)
        return read_model(hf_config, (block,) * hf_config.positive_int("num_hidden_layers"), norm, max_positions=4096)


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
