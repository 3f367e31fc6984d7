"""Gemma 3: Gemma 2's block with normalised queries and keys in place of softcaps, and two rotary embeddings.

Five of six layers see a window and turn with a base of their own, which `rope_scaling` leaves alone. Of the models that also read images,
this is the text part.

References: transformers.Gemma3ForCausalLM, transformers.Gemma3ForConditionalGeneration. Paper: Gemma Team 2025 (arXiv 2503.19786).
"""

from dataclasses import replace
from pathlib import Path

from flatlm.examples import gemma2
from flatlm.layers.config import MaskConfig, ModelConfig, NormConfig, QueryKeyNormConfig
from flatlm.utilities.configs.config_parts import read_heads, read_ropes, read_windows
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.weights.tensor_names import TensorNames

__all__ = ["TENSOR_NAMES", "Gemma3ConfigBuilder", "build_model", "define_and_run"]

IMAGE_PARTS = ("vision_tower", "multi_modal_projector")
TENSOR_NAMES: TensorNames = replace(
    gemma2.TENSOR_NAMES,
    attn_query_norm="model.layers.{}.self_attn.q_norm",
    attn_key_norm="model.layers.{}.self_attn.k_norm",
    prefixes=(("", "language_model."), ("model.", "model.language_model.")),
    ignored=tuple(f"{begin}{part}.*" for begin in ("", "model.") for part in IMAGE_PARTS),
)
TEXT_DEFAULTS = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "final_logit_softcapping": None,
}
"""What a published `text_config` leaves out."""


class Gemma3ConfigBuilder(ConfigBuilder):
    """config.json of transformers.Gemma3TextConfig, or that in the `text_config` of Gemma3Config."""

    family = "gemma3"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        nested = hf_config.nested("text_config")
        if nested is None:
            hf_config.values = TEXT_DEFAULTS | dict(hf_config.values)
            return text_model(hf_config)
        hf_config.skip("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index")
        text = ConfigReader(TEXT_DEFAULTS | dict(nested.values), nested.source)
        text.require("final_logit_softcapping", None)  # the reference does not apply it here
        model = replace(text_model(text), tied_head=hf_config.boolean("tie_word_embeddings", True))
        text.finish()
        return model


def text_model(hf_config: ConfigReader) -> ModelConfig:
    """The language model that a Gemma3TextConfig describes."""
    heads, layers = read_heads(hf_config, default_width=256), hf_config.positive_int("num_hidden_layers")
    windows = read_windows(hf_config, layers, pattern=hf_config.positive_int("sliding_window_pattern", 6))
    whole, local = read_ropes(hf_config, heads.width, base=1e6, window_base=hf_config.positive_float("rope_local_base_freq", 1e4))
    hf_config.skip("hidden_act", "cache_implementation", "_sliding_window_pattern")
    hf_config.require("use_bidirectional_attention", False)
    hf_config.require("attn_logit_softcapping", None)
    bias = hf_config.boolean("attention_bias", False)
    attention = heads.attention(
        whole,
        bias=bias,
        scale=hf_config.positive_float("query_pre_attn_scalar", 256.0) ** -0.5,
        qk_norm=QueryKeyNormConfig(NormConfig(eps=hf_config.positive_float("rms_norm_eps", 1e-6))),
    )
    windowed = [replace(attention, rope=local if window else whole, mask=MaskConfig(window)) for window in windows]
    return gemma2.sandwiched_model(hf_config, windowed)


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
