"""OLMo 3: 7B and 32B. An OLMo 2 most of whose layers see a window only; only those that see everything have a scaled rotary embedding.

Reference: transformers.Olmo3ForCausalLM. Paper: OLMo team 2025 (arXiv 2512.13961).
"""

from pathlib import Path

from flatlm.examples.olmo2 import TENSOR_NAMES, build_from_layers
from flatlm.layers.config import MaskConfig, ModelConfig, RopeConfig
from flatlm.utilities.config_parts import read_heads, read_layer_types, read_rope
from flatlm.utilities.config_reader import ConfigReader
from flatlm.utilities.example import build_model, define_and_run
from flatlm.utilities.registry import ConfigBuilder

__all__ = ["TENSOR_NAMES", "Olmo3ConfigBuilder", "build_model", "define_and_run"]

ROPE_BASE = 500000.0


class Olmo3ConfigBuilder(ConfigBuilder):
    """config.json of transformers.Olmo3Config, in the old form (rope_theta, rope_scaling) and the new (rope_parameters)."""

    family = "olmo3"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads, count = read_heads(hf_config), hf_config.positive_int("num_hidden_layers")
        default = ["full_attention" if (layer + 1) % 4 == 0 else "sliding_attention" for layer in range(count)]
        is_sliding = read_layer_types(hf_config, count, default)
        full_rope = read_rope(hf_config, heads.width, base=ROPE_BASE, layer_type="full_attention")
        sliding_rope = RopeConfig(heads.width, full_rope.base)  # the old form's scaling is of the other layers
        if parameters := hf_config.nested("rope_parameters"):
            if not parameters.has("full_attention") and not parameters.has("sliding_attention"):
                raise hf_config.wrong("rope_parameters", "must have full_attention and sliding_attention")
            sliding_rope = read_rope(hf_config, heads.width, base=ROPE_BASE, layer_type="sliding_attention")
        window = hf_config.positive_int("sliding_window", 4096)
        sliding, full = (MaskConfig(window), sliding_rope), (MaskConfig(), full_rope)
        return build_from_layers(hf_config, heads, [sliding if slides else full for slides in is_sliding])


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
