"""BART: BART base and large, BART fine-tuned to summarise, models of other alphabets, and every model of that architecture.

Reference: transformers.BartForConditionalGeneration. Paper: Lewis et al. 2020 (arXiv 1910.13461).
"""

from dataclasses import replace
from pathlib import Path

from flatlm.layers.encoder_decoder_config import EncoderDecoderConfig
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.encoder_decoder_parts import read_bart
from flatlm.utilities.configs.families import family_record
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model
from flatlm.utilities.weights.tensor_names import TensorNames

__all__ = ["TENSOR_NAMES", "BartConfigBuilder", "build_model"]

_ENCODER = TensorNames(
    embedding="model.shared",
    position_embedding="model.encoder.embed_positions",
    embedding_norm="model.encoder.layernorm_embedding",
    final_norm="model.encoder.layer_norm",  # of those that normalise first
    pre_attn_norm="model.encoder.layers.{}.self_attn_layer_norm",
    attn_query_proj="model.encoder.layers.{}.self_attn.q_proj",
    attn_key_proj="model.encoder.layers.{}.self_attn.k_proj",
    attn_value_proj="model.encoder.layers.{}.self_attn.v_proj",
    attn_output_proj="model.encoder.layers.{}.self_attn.out_proj",
    pre_ff_norm="model.encoder.layers.{}.final_layer_norm",
    ff_up_proj="model.encoder.layers.{}.fc1",
    ff_down_proj="model.encoder.layers.{}.fc2",
)
TENSOR_NAMES = replace(
    _ENCODER.renamed("model.encoder.", "model.decoder."),
    lm_head="lm_head",
    logits_bias="final_logits_bias",
    pre_cross_norm="model.decoder.layers.{}.encoder_attn_layer_norm",
    cross_query_proj="model.decoder.layers.{}.encoder_attn.q_proj",
    cross_key_proj="model.decoder.layers.{}.encoder_attn.k_proj",
    cross_value_proj="model.decoder.layers.{}.encoder_attn.v_proj",
    cross_output_proj="model.decoder.layers.{}.encoder_attn.out_proj",
    encoder=_ENCODER,
    prefixes=(("model.", ""), ("model.shared", "model.encoder.embed_tokens")),
    ignored=("*shared.weight", "*coder.embed_tokens.weight"),  # the same table again
)
TENSOR_NAMES_OF_THREE_TABLES = replace(
    TENSOR_NAMES,
    embedding="model.decoder.embed_tokens",
    encoder=replace(_ENCODER, embedding="model.encoder.embed_tokens"),
    prefixes=(),
    ignored=("model.shared.weight",),  # which nothing reads
)
"""Where head, encoder and decoder have each their own: transformers ties all of them, or none."""


class BartConfigBuilder(ConfigBuilder):
    """config.json of transformers.BartConfig."""

    family = "bart"
    tensor_names = TENSOR_NAMES

    @classmethod
    def condition(cls, hf_config: ConfigReader) -> bool:
        return super().condition(hf_config) and hf_config.values.get("tie_word_embeddings") is not False

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> EncoderDecoderConfig:
        hf_config.skip("grapheme_chars", "phoneme_chars")  # alphabets, which are the tokenizers' affair
        return read_bart(
            hf_config,
            model_path,
            norm_first=False,
            decoder_start_token_id=2,
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=1,
            forced_eos_token_id=2,
        )


class UntiedBartConfigBuilder(BartConfigBuilder):
    """The same with tables of their own."""

    tensor_names = TENSOR_NAMES_OF_THREE_TABLES

    @classmethod
    def condition(cls, hf_config: ConfigReader) -> bool:
        return family_record(cls.family).means(hf_config)


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
