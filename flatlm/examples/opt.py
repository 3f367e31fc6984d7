"""OPT: OPT 125M and 1.3B to 66B, Galactica. (OPT 350M, which normalises after its branches and projects its embedding, is refused.)

Reference: transformers.OPTForCausalLM. Papers: Zhang et al. 2022 (arXiv 2205.01068), Taylor et al. 2022 (arXiv 2211.09085).
"""

from pathlib import Path

from flatlm.layers.config import (
    AttentionConfig,
    BlockConfig,
    FeedForwardConfig,
    ModelConfig,
    NormConfig,
    NormKind,
    PositionEmbeddingConfig,
)
from flatlm.utilities.configs.config_parts import ACTIVATIONS
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.weights.tensor_names import TensorNames

__all__ = ["TENSOR_NAMES", "OPTConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES = TensorNames(
    embedding="model.decoder.embed_tokens",
    position_embedding="model.decoder.embed_positions",
    final_norm="model.decoder.final_layer_norm",
    lm_head="lm_head",
    pre_attn_norm="model.decoder.layers.{}.self_attn_layer_norm",
    attn_query_proj="model.decoder.layers.{}.self_attn.q_proj",
    attn_key_proj="model.decoder.layers.{}.self_attn.k_proj",
    attn_value_proj="model.decoder.layers.{}.self_attn.v_proj",
    attn_output_proj="model.decoder.layers.{}.self_attn.out_proj",
    pre_ff_norm="model.decoder.layers.{}.final_layer_norm",
    ff_up_proj="model.decoder.layers.{}.fc1",
    ff_down_proj="model.decoder.layers.{}.fc2",
    prefixes=(("model.decoder.", "decoder."),),
)

POSITION_OFFSET = 2
"""Rows of the positions' table before that of position 0: fairseq's, whose padding had a position."""


class OPTConfigBuilder(ConfigBuilder):
    """config.json of transformers.OPTConfig."""

    family = "opt"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        hf_config.require("do_layer_norm_before", True)
        hf_config.require("_remove_final_layer_norm", False)
        dim, heads = hf_config.positive_int("hidden_size"), hf_config.positive_int("num_attention_heads")
        if dim % heads:
            raise hf_config.wrong("hidden_size", f"is not a multiple of num_attention_heads = {heads}")
        hf_config.require("word_embed_proj_dim", dim)
        hf_config.skip("dropout", "activation_dropout", "layerdrop", "init_std")
        positions = hf_config.positive_int("max_position_embeddings", 2048)
        bias, affine = hf_config.boolean("enable_bias", True), hf_config.boolean("layer_norm_elementwise_affine", True)
        attention = AttentionConfig(heads, heads, dim // heads, None, qkv_bias=bias, output_bias=bias)
        feed_forward = FeedForwardConfig(
            hf_config.positive_int("ffn_dim"), hf_config.choice("activation_function", ACTIVATIONS, "relu"), gated=False, bias=bias
        )
        norm = NormConfig(NormKind.LAYER, 1e-5, bias=affine, weight=affine)
        return ModelConfig(
            vocab_size=hf_config.positive_int("vocab_size"),
            embedding_dim=dim,
            blocks=(BlockConfig(attention, feed_forward, norm, norm),) * hf_config.positive_int("num_hidden_layers"),
            max_positions=positions,
            final_norm=norm,
            tied_head=hf_config.boolean("tie_word_embeddings", True),
            position_embedding=PositionEmbeddingConfig(positions + POSITION_OFFSET, POSITION_OFFSET),
        )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
