"""mT5: mT5 small to XXL, mT0, and every model of that architecture: T5 v1.1 over another vocabulary.

Reference: transformers.MT5ForConditionalGeneration. Paper: Xue et al. 2021 (arXiv 2010.11934).
"""

from pathlib import Path

from flatlm.examples.t5 import GATED_TENSOR_NAMES, TENSOR_NAMES
from flatlm.layers.encoder_decoder_config import EncoderDecoderConfig
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.encoder_decoder_parts import is_gated, read_t5
from flatlm.utilities.configs.families import family_record
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model

__all__ = ["MT5ConfigBuilder", "build_model"]


class MT5ConfigBuilder(ConfigBuilder):
    """config.json of transformers.MT5Config, with a gated feed-forward, as published ones have it."""

    family = "mt5"
    tensor_names = GATED_TENSOR_NAMES

    @classmethod
    def condition(cls, hf_config: ConfigReader) -> bool:
        return super().condition(hf_config) and is_gated(hf_config, "gated-gelu")

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> EncoderDecoderConfig:
        return read_t5(hf_config, model_path, scaled_head=False, feed_forward="gated-gelu", vocab_size=250112)


class PlainMT5ConfigBuilder(MT5ConfigBuilder):
    """The same with a plain one."""

    tensor_names = TENSOR_NAMES

    @classmethod
    def condition(cls, hf_config: ConfigReader) -> bool:
        return family_record(cls.family).means(hf_config)


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
