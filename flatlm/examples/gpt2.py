"""GPT-2: GPT-2 small to XL, DistilGPT2, DialoGPT, CPM and GPT2-base-ch (FlagAI's config.json too), and every model of that architecture.

Reference: transformers.GPT2LMHeadModel. Paper: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
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
from flatlm.utilities.checkpoints.open import peek_tensors
from flatlm.utilities.configs.config_parts import ACTIVATIONS
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.weights.tensor_names import TensorNames

__all__ = ["TENSOR_NAMES", "GPT2ConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES = TensorNames(
    embedding="transformer.wte",
    position_embedding="transformer.wpe",
    final_norm="transformer.ln_f",
    lm_head="lm_head",
    pre_attn_norm="transformer.h.{}.ln_1",
    attn_fused_qkv_proj="transformer.h.{}.attn.c_attn",
    attn_output_proj="transformer.h.{}.attn.c_proj",
    pre_ff_norm="transformer.h.{}.ln_2",
    ff_up_proj="transformer.h.{}.mlp.c_fc",
    ff_down_proj="transformer.h.{}.mlp.c_proj",
    transposed=True,
    prefixes=(("transformer.", ""),),  # as OpenAI's own are published
    ignored=("*h.*.attn.bias", "*h.*.attn.masked_bias"),  # the causal mask
)


class GPT2ConfigBuilder(ConfigBuilder):
    """config.json of transformers.GPT2Config."""

    family = "gpt2"
    tensor_names = TENSOR_NAMES

    @classmethod
    def condition(cls, hf_config: ConfigReader) -> bool:
        """GPT-J and others have the same keys: without an architecture, another model_type is another model."""
        return super().condition(hf_config) and hf_config.model_type in ("", "gpt2")

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        dim, heads, layers = (hf_config.positive_int(key) for key in ("n_embd", "n_head", "n_layer"))
        if dim % heads:
            raise hf_config.wrong("n_embd", f"is not a multiple of n_head = {heads}")
        positions = hf_config.positive_int("n_positions", 1024)
        hf_config.require("add_cross_attention", False)
        hf_config.require("do_layer_norm_before", True)  # this and the next two: FlagAI's
        hf_config.require("hidden_size", dim)
        hf_config.skip("checkpoint_activations")
        hf_config.skip("n_ctx", "reorder_and_upcast_attn")  # not read by the reference; a matter of half-precision arithmetic
        hf_config.skip("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout")
        hf_config.skip("attn_pdrop", "predict_special_tokens", "n_special", "_num_labels", "gradient_checkpointing")
        norm = NormConfig(NormKind.LAYER, hf_config.positive_float("layer_norm_epsilon", 1e-5), bias=True)
        feed_forward = FeedForwardConfig(
            hf_config.positive_int("n_inner", 4 * dim),
            hf_config.choice("activation_function", ACTIVATIONS, "gelu_new"),
            gated=False,
            bias=True,
        )
        scale = (dim // heads) ** -0.5 if hf_config.boolean("scale_attn_weights", True) else 1.0
        by_layer, qkv_bias = hf_config.boolean("scale_attn_by_inverse_layer_idx", False), _has_qkv_bias(model_path)

        def block(layer: int) -> BlockConfig:
            own_scale = scale / (layer + 1) if by_layer else scale
            attention = AttentionConfig(heads, heads, dim // heads, None, qkv_bias=qkv_bias, output_bias=True, scale=own_scale)
            return BlockConfig(attention, feed_forward, norm, norm)

        return ModelConfig(
            vocab_size=hf_config.positive_int("vocab_size"),
            embedding_dim=dim,
            blocks=tuple(block(layer) for layer in range(layers)),
            max_positions=positions,
            final_norm=norm,
            tied_head=hf_config.boolean("tie_word_embeddings", True),
            position_embedding=PositionEmbeddingConfig(positions),
        )


def _has_qkv_bias(model_path: Path) -> bool:
    """Some were trained without this bias (it is zero for the reference then), and no key of config.json says so: one layer's is enough
    to ask for every layer's.
    """
    tensors = peek_tensors(model_path)
    return tensors is None or any(name.endswith("attn.c_attn.bias") for name in tensors)


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
