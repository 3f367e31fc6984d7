"""SmolLM and SmolLM2 (135M, 360M, 1.7B): Llama's architecture, deep and narrow, with tied heads.

Reference: transformers.LlamaForCausalLM. Paper: Ben Allal et al. 2025 (arXiv 2502.02737).
"""

from flatlm.examples.llama import TENSOR_NAMES
from flatlm.layers.config import AttentionConfig, BlockConfig, FeedForwardConfig, ModelConfig, RopeConfig
from flatlm.utilities.example import build_model, define_and_run

__all__ = ["TENSOR_NAMES", "build_model", "define_and_run", "get_model_config"]


def get_model_config() -> ModelConfig:
    """SmolLM2 135M, as published. (The first SmolLM differs in its rope base, 10000, and its 2048 positions.)"""
    attention = AttentionConfig(num_query_heads=9, num_kv_heads=3, head_dim=64, rope=RopeConfig(64, 100000.0))
    block = BlockConfig(attention, FeedForwardConfig(1536))
    return ModelConfig(vocab_size=49152, embedding_dim=576, blocks=(block,) * 30, max_positions=8192, tied_head=True)


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
