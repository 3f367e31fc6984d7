"""ERNIE 4.5 (0.3B, dense): Llama's block, the entries of a head turning in pairs.

Reference: transformers.Ernie4_5ForCausalLM. Report: Baidu ERNIE Team 2025 (ERNIE 4.5 Technical Report).
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

__all__ = ["TENSOR_NAMES", "Ernie45ConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES: TensorNames = replace(llama.TENSOR_NAMES, interleaved_rope=True)


class Ernie45ConfigBuilder(ConfigBuilder):
    """config.json of transformers.Ernie4_5Config."""

    family = "ernie4_5"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads = read_heads(hf_config, default_width=None if "head_dim" in hf_config.values else 128)
        if "num_key_value_heads" not in hf_config.values:  # null means as many as there are query heads
            raise hf_config.wrong("num_key_value_heads", "is needed: left out, it means 2")
        hf_config.require("compression_ratio", 1.0)
        bias, rope = hf_config.boolean("use_bias", False), read_rope(hf_config, heads.width, base=500000.0)
        attention = heads.attention(rope, bias=bias)
        norm = NormConfig(eps=hf_config.positive_float("rms_norm_eps", 1e-5))
        block = BlockConfig(attention, read_feed_forward(hf_config, bias=bias), norm, norm)
        return read_model(
            hf_config, (block,) * hf_config.positive_int("num_hidden_layers"), norm, max_positions=131072, vocab_size=103424, tied=True
        )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
