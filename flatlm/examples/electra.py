"""ELECTRA: BERT's body behind narrow tables, pretrained to tell replaced tokens (discriminators) or to replace them (generators).

Reference: transformers.ElectraModel and its heads. Paper: Clark et al. 2020, "ELECTRA: Pre-training Text Encoders as Discriminators".
"""

from pathlib import Path

from flatlm.layers.config import Activation
from flatlm.layers.encoder_config import EncoderConfig
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.encoder_parts import read_encoder, read_parts
from flatlm.utilities.configs.encoder_tasks import REPLACED_TOKENS, HeadStyle, read_head
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model
from flatlm.utilities.weights.tensor_names import HeadNames, TensorNames

__all__ = ["TENSOR_NAMES", "ElectraConfigBuilder", "build_model"]

TENSOR_NAMES = TensorNames(
    embedding="electra.embeddings.word_embeddings",
    final_norm="",
    position_embedding="electra.embeddings.position_embeddings",
    token_type_embedding="electra.embeddings.token_type_embeddings",
    embedding_norm="electra.embeddings.LayerNorm",
    embedding_proj="electra.embeddings_project",
    attn_query_proj="electra.encoder.layer.{}.attention.self.query",
    attn_key_proj="electra.encoder.layer.{}.attention.self.key",
    attn_value_proj="electra.encoder.layer.{}.attention.self.value",
    attn_output_proj="electra.encoder.layer.{}.attention.output.dense",
    pre_attn_norm="electra.encoder.layer.{}.attention.output.LayerNorm",
    ff_up_proj="electra.encoder.layer.{}.intermediate.dense",
    ff_down_proj="electra.encoder.layer.{}.output.dense",
    pre_ff_norm="electra.encoder.layer.{}.output.LayerNorm",
    heads=(
        HeadNames("masklm", "generator_lm_head", "generator_predictions.dense", "generator_predictions.LayerNorm"),
        HeadNames("classification", "classifier.out_proj", "classifier.dense"),
        HeadNames("token-classification", "classifier"),
        HeadNames("question-answering", "qa_outputs"),
        HeadNames("replaced-tokens", "discriminator_predictions.dense_prediction", "discriminator_predictions.dense"),
    ),
    prefixes=(("electra.", ""),),
    ignored=("*embeddings.position_ids",),  # 0, 1, 2, ...
)


class ElectraConfigBuilder(ConfigBuilder):
    """config.json of transformers.ElectraConfig."""

    family = "electra"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> EncoderConfig:
        parts = read_parts(hf_config)
        style = HeadStyle(Activation.GELU, parts.norm, Activation.GELU, REPLACED_TOKENS, parts.activation)
        task, head = read_head(hf_config, model_path, TENSOR_NAMES, style)
        hf_config.skip("summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout")  # of multiple choice alone
        narrow = hf_config.positive_int("embedding_size", 128)
        return read_encoder(hf_config, parts, task, head, embedding_dim=narrow, projected=narrow != parts.width)


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
