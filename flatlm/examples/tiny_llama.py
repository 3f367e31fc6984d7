"""TinyLlama 1.1B: Llama 2's architecture, smaller, with 4 key/value heads for 32 query heads.

Reference: transformers.LlamaForCausalLM. Paper: Zhang et al. 2024 (arXiv 2401.02385).
"""

from flatlm.examples.llama import TENSOR_NAMES
from flatlm.layers.config import AttentionConfig, BlockConfig, FeedForwardConfig, ModelConfig, RopeConfig
from flatlm.utilities.example import build_model, define_and_run

__all__ = ["TENSOR_NAMES", "build_model", "define_and_run", "get_model_config"]


def get_model_config() -> ModelConfig:
    """TinyLlama 1.1B, as published."""
    attention = AttentionConfig(num_query_heads=32, num_kv_heads=4, head_dim=64, rope=RopeConfig(64))
    block = BlockConfig(attention, FeedForwardConfig(5632))
    return ModelConfig(vocab_size=32000, embedding_dim=2048, blocks=(block,) * 22, max_positions=2048)


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
