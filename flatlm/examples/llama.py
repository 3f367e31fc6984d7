"""Llama: Llama 2, Llama 3, 3.1 and 3.2 (with their rope scaling), and every model of that architecture.

Reference: transformers.LlamaForCausalLM. Papers: Touvron et al. 2023 (arXiv 2307.09288), Grattafiori et al. 2024 (arXiv 2407.21783).
"""

from pathlib import Path

from torch import Tensor

from flatlm.layers.config import (
    Activation,
    AttentionConfig,
    BlockConfig,
    FeedForwardConfig,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    NormConfig,
    RopeConfig,
    RopeScaling,
)
from flatlm.layers.model import Decoder
from flatlm.utilities import example
from flatlm.utilities.config_reader import ConfigReader
from flatlm.utilities.loader import TensorNames
from flatlm.utilities.registry import ConfigBuilder

TENSOR_NAMES = TensorNames(
    embedding="model.embed_tokens",
    final_norm="model.norm",
    lm_head="lm_head",
    pre_attn_norm="model.layers.{}.input_layernorm",
    attn_query_proj="model.layers.{}.self_attn.q_proj",
    attn_key_proj="model.layers.{}.self_attn.k_proj",
    attn_value_proj="model.layers.{}.self_attn.v_proj",
    attn_output_proj="model.layers.{}.self_attn.o_proj",
    pre_ff_norm="model.layers.{}.post_attention_layernorm",
    ff_gate_proj="model.layers.{}.mlp.gate_proj",
    ff_up_proj="model.layers.{}.mlp.up_proj",
    ff_down_proj="model.layers.{}.mlp.down_proj",
    ignored=("model.layers.*.self_attn.rotary_emb.inv_freq",),  # tables that early checkpoints carried along
)

ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "relu": Activation.RELU,
}


class LlamaConfigBuilder(ConfigBuilder):
    """config.json of transformers.LlamaConfig, in the old form (rope_theta, rope_scaling) and the new (rope_parameters)."""

    family = "llama"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        dim, heads = hf_config.positive_int("hidden_size"), hf_config.positive_int("num_attention_heads")
        kv_heads = hf_config.positive_int("num_key_value_heads", heads)
        if heads % kv_heads:
            raise hf_config.wrong("num_key_value_heads", f"does not divide num_attention_heads = {heads}")
        if not hf_config.has("head_dim") and dim % heads:
            raise hf_config.wrong("hidden_size", f"is not a multiple of num_attention_heads = {heads}, and there is no head_dim")
        head_dim = hf_config.positive_int("head_dim", dim // heads)
        if head_dim % 2:
            raise hf_config.wrong("head_dim", "must be even: rotary embedding turns pairs")
        if hf_config.boolean("rope_interleaved", False):
            raise hf_config.wrong("rope_interleaved", "is not supported; false is: rotary embedding of halves")
        bias, max_positions = hf_config.boolean("attention_bias", False), hf_config.positive_int("max_position_embeddings", 2048)
        attention = AttentionConfig(heads, kv_heads, head_dim, read_rope(hf_config, head_dim), qkv_bias=bias, output_bias=bias)
        feed_forward = FeedForwardConfig(
            hf_config.positive_int("intermediate_size"),
            hf_config.choice("hidden_act", ACTIVATIONS, "silu"),
            bias=hf_config.boolean("mlp_bias", False),
        )
        norm = NormConfig(eps=hf_config.positive_float("rms_norm_eps", 1e-6))
        return ModelConfig(
            vocab_size=hf_config.positive_int("vocab_size"),
            embedding_dim=dim,
            blocks=(BlockConfig(attention, feed_forward, norm, norm),) * hf_config.positive_int("num_hidden_layers"),
            max_positions=max_positions,
            final_norm=norm,
            tied_head=hf_config.boolean("tie_word_embeddings", False),
        )


def read_rope(hf_config: ConfigReader, head_dim: int) -> RopeConfig:
    """Base and scaling from `rope_parameters`, or from `rope_theta` and `rope_scaling`."""
    base = hf_config.positive_float("rope_theta", 10000.0)
    scaling = hf_config.nested("rope_parameters") or hf_config.nested("rope_scaling")
    hf_config.skip("rope_parameters", "rope_scaling")
    if scaling is None:
        return RopeConfig(head_dim, base)
    base = scaling.positive_float("rope_theta", base)
    kind = "rope_type" if scaling.has("rope_type") else "type"
    read = scaling.choice(kind, {"default": _unscaled, "linear": _linear, "llama3": _llama3}, "default")
    rope = RopeConfig(head_dim, base, read(scaling))
    scaling.skip("type", "rope_type")
    scaling.finish()
    return rope


def _unscaled(scaling: ConfigReader) -> None:
    scaling.skip("factor")  # some writers leave it at 1


def _linear(scaling: ConfigReader) -> RopeScaling:
    return LinearScaling(scaling.positive_float("factor"))


def _llama3(scaling: ConfigReader) -> RopeScaling:
    low, high = scaling.positive_float("low_freq_factor"), scaling.positive_float("high_freq_factor")
    if low >= high:
        raise scaling.wrong("low_freq_factor", f"must be below high_freq_factor = {high}")
    return Llama3Scaling(scaling.positive_float("factor"), low, high, scaling.positive_int("original_max_position_embeddings"))


def get_model_config() -> ModelConfig:
    """Llama 3.2 1B, as published."""
    scaling = Llama3Scaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192)
    attention = AttentionConfig(num_query_heads=32, num_kv_heads=8, head_dim=64, rope=RopeConfig(64, 500000.0, scaling))
    block = BlockConfig(attention, FeedForwardConfig(8192))
    return ModelConfig(vocab_size=128256, embedding_dim=2048, blocks=(block,) * 16, max_positions=131072, tied_head=True)


def build_model(checkpoint_path: str | Path, *, kv_cache_max_len: int = 1024) -> Decoder:
    """The eager model, shaped by the checkpoint's config.json and loaded with its weights in float32."""
    return example.build_model(checkpoint_path, kv_cache_max_len=kv_cache_max_len)


def define_and_run(checkpoint_path: str | Path) -> Tensor:
    """Logits [1, T, V] of the eager model for a few sample tokens."""
    return example.run_sample(build_model(checkpoint_path))


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
