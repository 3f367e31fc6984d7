"""Gemma 1 and CodeGemma: Llama's block with norms stored as their difference from 1, and an embedding scaled by the root of its width.

Reference: transformers.GemmaForCausalLM. Paper: Gemma Team 2024 (arXiv 2403.08295).
"""

from dataclasses import replace
from pathlib import Path

from flatlm.examples import llama
from flatlm.layers.config import Activation, BlockConfig, FeedForwardConfig, ModelConfig, NormConfig
from flatlm.utilities.configs.config_parts import ACTIVATIONS, read_heads, read_model, read_rope
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.weights.tensor_names import TensorNames

__all__ = ["TENSOR_NAMES", "GemmaConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES: TensorNames = replace(llama.TENSOR_NAMES, norm_offset=1.0)
OWN_ACTIVATIONS = {**ACTIVATIONS, "gelu": Activation.GELU_TANH}
"""The first published configurations say gelu where they mean its approximation."""


class GemmaConfigBuilder(ConfigBuilder):
    """config.json of transformers.GemmaConfig."""

    family = "gemma"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads = read_heads(hf_config, default_width=256)
        hf_config.require("use_bidirectional_attention", False)
        bias, rope = hf_config.boolean("attention_bias", False), read_rope(hf_config, heads.width)
        attention = heads.attention(rope, bias=bias)
        activation = hf_config.choice("hidden_act", OWN_ACTIVATIONS, "gelu_pytorch_tanh")
        if hf_config.has("hidden_activation") and hf_config.choice("hidden_activation", OWN_ACTIVATIONS) is not activation:
            raise hf_config.wrong("hidden_activation", "contradicts hidden_act")
        norm = NormConfig(eps=hf_config.positive_float("rms_norm_eps", 1e-6))
        block = BlockConfig(attention, FeedForwardConfig(hf_config.positive_int("intermediate_size"), activation), norm, norm)
        return read_model(
            hf_config,
            (block,) * hf_config.positive_int("num_hidden_layers"),
            norm,
            max_positions=8192,
            vocab_size=256000,
            tied=True,
            embedding_scale=heads.dim**0.5,
        )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
