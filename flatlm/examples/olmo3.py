"""OLMo 3: 7B and 32B. An OLMo 2 most of whose layers see a window only; only those that see everything have a scaled rotary embedding.

Reference: transformers.Olmo3ForCausalLM. Paper: OLMo team 2025 (arXiv 2512.13961).
"""

from pathlib import Path

from flatlm.examples.olmo2 import TENSOR_NAMES, build_from_layers
from flatlm.layers.config import MaskConfig, ModelConfig
from flatlm.utilities.configs.config_parts import read_heads, read_ropes, read_windows
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model, define_and_run

__all__ = ["TENSOR_NAMES", "Olmo3ConfigBuilder", "build_model", "define_and_run"]

ROPE_BASE = 500000.0


class Olmo3ConfigBuilder(ConfigBuilder):
    """config.json of transformers.Olmo3Config, in the old form (rope_theta, rope_scaling) and the new (rope_parameters)."""

    family = "olmo3"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> ModelConfig:
        heads, count = read_heads(hf_config), hf_config.positive_int("num_hidden_layers")
        full_rope, sliding_rope = read_ropes(hf_config, heads.width, base=ROPE_BASE)
        windows = read_windows(hf_config, count, pattern=4)
        return build_from_layers(hf_config, heads, [(MaskConfig(window), sliding_rope if window else full_rope) for window in windows])


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
