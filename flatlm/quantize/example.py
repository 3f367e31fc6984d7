"""A small model of FlatLM's blocks, quantized by a recipe and written as a TFLite file: `python -m flatlm.quantize.example`.

Any other module is quantized the same way: a recipe, the module, and arguments to trace it with.
"""

import torch
from absl import app, flags

from flatlm.convert import convert
from flatlm.layers.config import AttentionConfig, BlockConfig, FeedForwardConfig, ModelConfig, RopeConfig
from flatlm.layers.kv_cache import CacheGeometry
from flatlm.layers.model import Decoder
from flatlm.quantize import quant_recipes

_OUTPUT = flags.DEFINE_string("output_path", "quantized_example.tflite", "File to write.")


def small_model() -> Decoder:
    """Two blocks, 128 wide, for texts of 64 tokens: weights that nobody has trained."""
    attention = AttentionConfig(num_query_heads=4, num_kv_heads=2, head_dim=32, rope=RopeConfig(32))
    block = BlockConfig(attention, FeedForwardConfig(hidden_dim=256))
    config = ModelConfig(vocab_size=512, embedding_dim=128, blocks=(block, block), max_positions=64, tied_head=True)
    model = Decoder(config, CacheGeometry(config.max_positions))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.eval()


def main(_: list[str]) -> None:
    """Quantize, convert, write, and say what was written."""
    model = small_model()
    tokens, input_pos = torch.zeros(1, 16, dtype=torch.int32), torch.arange(16, dtype=torch.int32)
    recipe = quant_recipes.full_int8_dynamic_recipe()
    converted = convert(model, (tokens, input_pos), quant_config=recipe)
    converted.export(_OUTPUT.value)
    floats = 4 * sum(parameter.numel() for parameter in model.parameters())
    size = len(converted.content)
    print(f"{_OUTPUT.value}: {size:,} bytes by recipe {recipe.name} ({recipe.summary}); the weights are {floats:,} bytes of float32")


if __name__ == "__main__":
    app.run(main)
