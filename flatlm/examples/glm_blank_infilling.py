"""GLM as it was first: blank infilling. GLM base, large and 10B, English and Chinese (THUDM/GLM, FlagAI). The later GLM-4 is `glm`, `glm4`.

A context is read whole, each of its tokens seeing all of it; every blank in it is one mask token, and is filled behind the context, from
left to right. Two tables of learned positions say where a token stands and where within its blank (layers/infilling.py).

Reference: none in transformers; FlagAI's glm_model.py and THUDM/GLM's modeling_glm.py. Paper: Du et al. 2022 (arXiv 2103.10360).
"""

from pathlib import Path

from flatlm.layers.config import (
    Activation,
    AttentionConfig,
    BlockConfig,
    FeedForwardConfig,
    MaskConfig,
    ModelConfig,
    NormConfig,
    NormKind,
    PositionEmbeddingConfig,
)
from flatlm.utilities.checkpoints.open import peek_tensors
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.weights.tensor_names import TensorNames

__all__ = ["TENSOR_NAMES", "GlmBlankInfillingConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES = TensorNames(
    embedding="word_embeddings",
    position_embedding="transformer.position_embeddings",
    block_position_embedding="transformer.block_position_embeddings",
    final_norm="transformer.final_layernorm",
    pre_attn_norm="transformer.layers.{}.input_layernorm",
    attn_fused_qkv_proj="transformer.layers.{}.attention.query_key_value",
    attn_output_proj="transformer.layers.{}.attention.dense",
    pre_ff_norm="transformer.layers.{}.post_attention_layernorm",
    ff_up_proj="transformer.layers.{}.mlp.dense_h_to_4h",
    ff_down_proj="transformer.layers.{}.mlp.dense_4h_to_h",
    prefixes=(("", "glm."), ("", "model."), ("", "module.")),  # transformers' form, FlagAI's tasks, distributed training
)

VOCABULARY_MULTIPLE = 128
"""Embeddings have rows for so many tokens, or a multiple, whatever the tokenizer has."""


class GlmBlankInfillingConfigBuilder(ConfigBuilder):
    """config.json of FlagAI's GLMModel, and of the GLMConfig that comes with THUDM's checkpoints on the Hub."""

    family = "glm_blank_infilling"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        hf_config.require("block_position_encoding", True)
        hf_config.require("relative_encoding", False)
        hf_config.require("spell_length", None)  # a trained prompt in the place of some tokens
        hf_config.require("performer", False)
        hf_config.require("use_decoder_layer", False)
        hf_config.skip("embedding_dropout_prob", "attention_dropout_prob", "output_dropout_prob", "checkpoint_activations")
        hf_config.skip("checkpoint_num_layers", "parallel_output", "output_predict", "spell_func", "pool_token", "bad_words_id")
        hf_config.skip("init_method_std", "use_scaled_init_for_output_weights", "tune_prefix_layers")
        hf_config.skip("attention_scale")  # divides before the product what it multiplies after it, against overflow in half precision
        hf_config.skip("max_memory_length")  # of what training remembers of earlier texts
        dim, heads = hf_config.positive_int("hidden_size"), hf_config.positive_int("num_attention_heads")
        if dim % heads:
            raise hf_config.wrong("hidden_size", f"is not a multiple of num_attention_heads = {heads}")
        positions = hf_config.positive_int("max_sequence_length")
        attention = AttentionConfig(heads, heads, dim // heads, None, qkv_bias=True, output_bias=True, mask=MaskConfig(prefix=True))
        feed_forward = FeedForwardConfig(4 * dim, Activation.GELU_TANH, gated=False, bias=True)
        norm = NormConfig(NormKind.LAYER, hf_config.positive_float("layernorm_epsilon", 1e-5), bias=True)
        return ModelConfig(
            vocab_size=_padded(hf_config.positive_int("vocab_size"), model_path),
            embedding_dim=dim,
            blocks=(BlockConfig(attention, feed_forward, norm, norm),) * hf_config.positive_int("num_layers"),
            max_positions=positions,
            final_norm=norm,
            tied_head=True,
            position_embedding=PositionEmbeddingConfig(positions + 1),
            block_position_embedding=PositionEmbeddingConfig(positions + 1),
        )


def _padded(vocab_size: int, model_path: Path) -> int:
    """The embedding's rows, where config.json counts the tokenizer's tokens and the embedding was padded."""
    padded = vocab_size + -vocab_size % VOCABULARY_MULTIPLE
    if padded == vocab_size:
        return vocab_size
    tensors = peek_tensors(model_path) or {}
    rows = [record.shape[0] for name, record in tensors.items() if name.endswith("word_embeddings.weight")]
    return padded if rows == [padded] else vocab_size


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
