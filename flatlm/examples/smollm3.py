"""SmolLM3: Llama's architecture, in which every fourth layer has no rotary embedding (NoPE).

Reference: transformers.SmolLM3ForCausalLM. NoPE: Yang et al. 2025 (arXiv 2501.18795).
"""

from dataclasses import replace
from pathlib import Path

from flatlm.examples.llama import TENSOR_NAMES
from flatlm.layers.config import BlockConfig, MaskConfig, ModelConfig, NormConfig
from flatlm.utilities.configs.config_parts import read_feed_forward, read_heads, read_layer_types, read_model, read_rope
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run

__all__ = ["TENSOR_NAMES", "SmolLM3ConfigBuilder", "build_model", "define_and_run"]


class SmolLM3ConfigBuilder(ConfigBuilder):
    """config.json of transformers.SmolLM3Config. `no_rope_layers` has 1 for a layer *with* rotary embedding."""

    family = "smollm3"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads, layers = read_heads(hf_config), hf_config.positive_int("num_hidden_layers")
        every = hf_config.positive_int("no_rope_layer_interval", 4)
        turned = hf_config.wholes("no_rope_layers", [int((layer + 1) % every != 0) for layer in range(layers)])
        if len(turned) != layers:
            raise hf_config.wrong("no_rope_layers", f"must have {layers} numbers, one for each layer")
        window = hf_config.optional_int("sliding_window", None)
        used = hf_config.boolean("use_sliding_window", False) and window is not None
        hf_config.skip("max_window_layers")
        local = read_layer_types(hf_config, layers, ["full_attention" if has or not used else "sliding_attention" for has in turned])

        bias, norm = hf_config.boolean("attention_bias", False), NormConfig(eps=hf_config.positive_float("rms_norm_eps", 1e-6))
        rope = read_rope(hf_config, heads.width, base=2000000.0)
        attention = heads.attention(rope, bias=bias)
        attentions = [
            replace(attention, rope=rope if turned[layer] else None, mask=MaskConfig(window if used and local[layer] else None))
            for layer in range(layers)
        ]
        feed_forward = read_feed_forward(hf_config, bias=hf_config.boolean("mlp_bias", False))
        return read_model(
            hf_config,
            tuple(BlockConfig(attention, feed_forward, norm, norm) for attention in attentions),
            norm,
            max_positions=32768,
            tied=True,
        )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
