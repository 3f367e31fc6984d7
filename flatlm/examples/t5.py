"""T5: T5 small to 11B, T5 v1.1, Flan-T5, ByT5 and CodeT5's like, and every model of that architecture.

Reference: transformers.T5ForConditionalGeneration. Paper: Raffel et al. 2020 (arXiv 1910.10683).
"""

from dataclasses import replace
from pathlib import Path

from flatlm.layers.encoder_decoder_config import EncoderDecoderConfig
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.encoder_decoder_parts import is_gated, read_t5
from flatlm.utilities.configs.families import family_record
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model
from flatlm.utilities.weights.tensor_names import TensorNames

__all__ = ["TENSOR_NAMES", "T5ConfigBuilder", "build_model"]

_ENCODER = TensorNames(
    embedding="shared",
    relative_bias="encoder.block.0.layer.0.SelfAttention.relative_attention_bias",  # the first layer keeps it for all
    final_norm="encoder.final_layer_norm",
    pre_attn_norm="encoder.block.{}.layer.0.layer_norm",
    attn_query_proj="encoder.block.{}.layer.0.SelfAttention.q",
    attn_key_proj="encoder.block.{}.layer.0.SelfAttention.k",
    attn_value_proj="encoder.block.{}.layer.0.SelfAttention.v",
    attn_output_proj="encoder.block.{}.layer.0.SelfAttention.o",
    pre_ff_norm="encoder.block.{}.layer.1.layer_norm",
    ff_up_proj="encoder.block.{}.layer.1.DenseReluDense.wi",
    ff_down_proj="encoder.block.{}.layer.1.DenseReluDense.wo",
)
TENSOR_NAMES = replace(
    _ENCODER.renamed("encoder.", "decoder."),
    pre_cross_norm="decoder.block.{}.layer.1.layer_norm",
    cross_query_proj="decoder.block.{}.layer.1.EncDecAttention.q",
    cross_key_proj="decoder.block.{}.layer.1.EncDecAttention.k",
    cross_value_proj="decoder.block.{}.layer.1.EncDecAttention.v",
    cross_output_proj="decoder.block.{}.layer.1.EncDecAttention.o",
    pre_ff_norm="decoder.block.{}.layer.2.layer_norm",
    ff_up_proj="decoder.block.{}.layer.2.DenseReluDense.wi",
    ff_down_proj="decoder.block.{}.layer.2.DenseReluDense.wo",
    encoder=_ENCODER,
    prefixes=(("shared", "encoder.embed_tokens"), ("shared", "decoder.embed_tokens")),
    ignored=(
        "*coder.embed_tokens.weight",  # the same table again
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",  # which nothing reads
    ),
)
GATED_TENSOR_NAMES = replace(
    TENSOR_NAMES,
    ff_gate_proj="decoder.block.{}.layer.2.DenseReluDense.wi_0",
    ff_up_proj="decoder.block.{}.layer.2.DenseReluDense.wi_1",
    encoder=replace(
        _ENCODER,
        ff_gate_proj="encoder.block.{}.layer.1.DenseReluDense.wi_0",
        ff_up_proj="encoder.block.{}.layer.1.DenseReluDense.wi_1",
    ),
)
"""Of T5 v1.1 and its descendants, whose feed-forwards are gated."""


class T5ConfigBuilder(ConfigBuilder):
    """config.json of transformers.T5Config, with a plain feed-forward."""

    family = "t5"
    tensor_names = TENSOR_NAMES

    @classmethod
    def condition(cls, hf_config: ConfigReader) -> bool:
        return super().condition(hf_config) and not is_gated(hf_config)

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> EncoderDecoderConfig:
        # Whether the head is scaled is told by a key that was about something else, until transformers 5 gave it one.
        unscaled = hf_config.values.get("tie_word_embeddings") is False
        scaled = hf_config.boolean("scale_decoder_outputs", not unscaled)
        return read_t5(hf_config, model_path, scaled_head=scaled, feed_forward="relu", vocab_size=32128)


class GatedT5ConfigBuilder(T5ConfigBuilder):
    """The same with a gated one."""

    tensor_names = GATED_TENSOR_NAMES

    @classmethod
    def condition(cls, hf_config: ConfigReader) -> bool:
        return family_record(cls.family).means(hf_config) and is_gated(hf_config)


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
