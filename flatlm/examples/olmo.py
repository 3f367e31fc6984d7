"""OLMo: OLMo 1B and 7B, which normalise without weights.

Reference: transformers.OlmoForCausalLM. Paper: Groeneveld et al. 2024 (arXiv 2402.00838).
"""

from pathlib import Path

from flatlm.layers.config import AttentionConfig, BlockConfig, FeedForwardConfig, ModelConfig, NormConfig, NormKind
from flatlm.utilities.config_parts import ACTIVATIONS, read_heads, read_rope
from flatlm.utilities.config_reader import ConfigReader
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.registry import ConfigBuilder
from flatlm.utilities.tensor_names import TensorNames

__all__ = ["TENSOR_NAMES", "OlmoConfigBuilder", "build_model", "define_and_run"]

TENSOR_NAMES = TensorNames(
    embedding="model.embed_tokens",
    final_norm="model.norm",  # it has no tensors, as the blocks' norms have none
    lm_head="lm_head",
    attn_query_proj="model.layers.{}.self_attn.q_proj",
    attn_key_proj="model.layers.{}.self_attn.k_proj",
    attn_value_proj="model.layers.{}.self_attn.v_proj",
    attn_output_proj="model.layers.{}.self_attn.o_proj",
    ff_gate_proj="model.layers.{}.mlp.gate_proj",
    ff_up_proj="model.layers.{}.mlp.up_proj",
    ff_down_proj="model.layers.{}.mlp.down_proj",
)


class OlmoConfigBuilder(ConfigBuilder):
    """config.json of transformers.OlmoConfig."""

    family = "olmo"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads, max_positions = read_heads(hf_config), hf_config.positive_int("max_position_embeddings", 2048)
        bias = hf_config.boolean("attention_bias", False)
        attention = AttentionConfig(
            heads.query,
            heads.key_value,
            heads.width,
            read_rope(hf_config, heads.width),
            qkv_bias=bias,
            output_bias=bias,
            clip=hf_config.positive_float("clip_qkv") if hf_config.has("clip_qkv") else None,
        )
        feed_forward = FeedForwardConfig(hf_config.positive_int("intermediate_size"), hf_config.choice("hidden_act", ACTIVATIONS, "silu"))
        norm = NormConfig(NormKind.LAYER, 1e-5, weight=False)
        return ModelConfig(
            vocab_size=hf_config.positive_int("vocab_size"),
            embedding_dim=heads.dim,
            blocks=(BlockConfig(attention, feed_forward, norm, norm),) * hf_config.positive_int("num_hidden_layers"),
            max_positions=max_positions,
            final_norm=norm,
            tied_head=hf_config.boolean("tie_word_embeddings", False),
        )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
