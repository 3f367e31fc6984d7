"""GPT-NeoX: GPT-NeoX-20B, Pythia, RedPajama-INCITE, Dolly v2, StableLM alpha, and every model of that architecture.

Reference: transformers.GPTNeoXForCausalLM. Papers: Black et al. 2022 (arXiv 2204.06745), Biderman et al. 2023 (arXiv 2304.01373).
"""

from pathlib import Path

from flatlm.layers.config import BlockConfig, ModelConfig, NormConfig, NormKind
from flatlm.utilities.configs.config_parts import read_feed_forward, read_heads, read_model, read_rope
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.weights.tensor_names import TensorNames

__all__ = ["TENSOR_NAMES", "GPTNeoXConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES = TensorNames(
    embedding="gpt_neox.embed_in",
    final_norm="gpt_neox.final_layer_norm",
    lm_head="embed_out",
    pre_attn_norm="gpt_neox.layers.{}.input_layernorm",
    attn_fused_qkv_proj="gpt_neox.layers.{}.attention.query_key_value",
    attn_output_proj="gpt_neox.layers.{}.attention.dense",
    pre_ff_norm="gpt_neox.layers.{}.post_attention_layernorm",
    ff_up_proj="gpt_neox.layers.{}.mlp.dense_h_to_4h",
    ff_down_proj="gpt_neox.layers.{}.mlp.dense_4h_to_h",
    grouped_qkv=True,  # head by head: its query, key, value
    ignored=(  # the causal mask and tables that early checkpoints carried along
        "gpt_neox.layers.*.attention.bias",
        "gpt_neox.layers.*.attention.masked_bias",
        "gpt_neox.layers.*.attention.rotary_emb.inv_freq",
    ),
)


class GPTNeoXConfigBuilder(ConfigBuilder):
    """config.json of transformers.GPTNeoXConfig, in the old form (rotary_pct, rotary_emb_base) and the new (rope_parameters)."""

    family = "gpt_neox"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads = read_heads(hf_config)
        base, partial = hf_config.positive_float("rotary_emb_base", 10000.0), hf_config.positive_float("rotary_pct", 0.25)
        hf_config.skip("attention_probs_dropout_prob", "classifier_dropout")
        bias = hf_config.boolean("attention_bias", True)
        attention = heads.attention(
            read_rope(hf_config, heads.width, base=base, partial=partial),
            bias=bias,
        )
        feed_forward = read_feed_forward(hf_config, default="gelu", gated=False, bias=True)
        norm = NormConfig(NormKind.LAYER, hf_config.positive_float("layer_norm_eps", 1e-5), bias=True)
        block = BlockConfig(attention, feed_forward, norm, norm, parallel=hf_config.boolean("use_parallel_residual", True))
        return read_model(hf_config, (block,) * hf_config.positive_int("num_hidden_layers"), norm, max_positions=2048)


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
