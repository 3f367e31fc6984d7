"""mBART: mBART-25, mBART-50, and every model of that architecture: BART with norms before its branches and at each stack's end.

Reference: transformers.MBartForConditionalGeneration. Papers: Liu et al. 2020 (arXiv 2001.08210), Tang et al. 2020 (arXiv 2008.00401).
"""

from pathlib import Path

from flatlm.examples.bart import TENSOR_NAMES, TENSOR_NAMES_OF_THREE_TABLES
from flatlm.layers.encoder_decoder_config import EncoderDecoderConfig
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.encoder_decoder_parts import read_bart
from flatlm.utilities.configs.families import family_record
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model

__all__ = ["MBartConfigBuilder", "build_model"]


class MBartConfigBuilder(ConfigBuilder):
    """config.json of transformers.MBartConfig."""

    family = "mbart"
    tensor_names = TENSOR_NAMES

    @classmethod
    def condition(cls, hf_config: ConfigReader) -> bool:
        return super().condition(hf_config) and hf_config.values.get("tie_word_embeddings") is not False

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> EncoderDecoderConfig:
        tokens = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "forced_eos_token_id": 2}
        return read_bart(hf_config, model_path, norm_first=True, wraps=True, **tokens)


class UntiedMBartConfigBuilder(MBartConfigBuilder):
    """The same with tables of their own."""

    tensor_names = TENSOR_NAMES_OF_THREE_TABLES

    @classmethod
    def condition(cls, hf_config: ConfigReader) -> bool:
        return family_record(cls.family).means(hf_config)


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
