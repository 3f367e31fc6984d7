"""Gemma 2: a norm before and behind each branch, softcapped scores and logits, and a window on every other layer.

Reference: transformers.Gemma2ForCausalLM. Paper: Gemma Team 2024 (arXiv 2408.00118).
"""

from dataclasses import replace
from pathlib import Path

from flatlm.examples import gemma
from flatlm.layers.config import AttentionConfig, BlockConfig, FeedForwardConfig, MaskConfig, ModelConfig, NormConfig
from flatlm.utilities.configs.config_parts import ACTIVATIONS, read_heads, read_model, read_rope, read_windows
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.weights.tensor_names import TensorNames

__all__ = ["TENSOR_NAMES", "Gemma2ConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES: TensorNames = replace(
    gemma.TENSOR_NAMES,
    post_attn_norm="model.layers.{}.post_attention_layernorm",
    pre_ff_norm="model.layers.{}.pre_feedforward_layernorm",
    post_ff_norm="model.layers.{}.post_feedforward_layernorm",
)


class Gemma2ConfigBuilder(ConfigBuilder):
    """config.json of transformers.Gemma2Config. `hidden_act` is not read by the reference: `hidden_activation` is."""

    family = "gemma2"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads, layers = read_heads(hf_config, default_width=256), hf_config.positive_int("num_hidden_layers")
        windows = read_windows(hf_config, layers, pattern=2)
        hf_config.skip("hidden_act", "cache_implementation")
        hf_config.require("use_bidirectional_attention", False)
        bias = hf_config.boolean("attention_bias", False)
        attention = heads.attention(
            read_rope(hf_config, heads.width),
            bias=bias,
            scale=hf_config.positive_float("query_pre_attn_scalar", 256.0) ** -0.5,
            softcap=hf_config.optional_float("attn_logit_softcapping", 50.0),
        )
        return sandwiched_model(hf_config, [replace(attention, mask=MaskConfig(window)) for window in windows])


def sandwiched_model(hf_config: ConfigReader, attentions: list[AttentionConfig]) -> ModelConfig:
    """Gemma 2 and 3 around their attentions: feed-forwards, the four norms of a block, embedding and head."""
    activation = hf_config.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh")
    feed_forward = FeedForwardConfig(hf_config.positive_int("intermediate_size"), activation)
    norm = NormConfig(eps=hf_config.positive_float("rms_norm_eps", 1e-6))
    dim = hf_config.positive_int("hidden_size")
    return read_model(
        hf_config,
        tuple(BlockConfig(attention, feed_forward, norm, norm, norm, norm) for attention in attentions),
        norm,
        max_positions=8192,
        vocab_size=256000,
        tied=True,
        embedding_scale=dim**0.5,
        logit_softcap=hf_config.optional_float("final_logit_softcapping", 30.0),
    )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
