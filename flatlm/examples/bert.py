"""BERT: base, large, multilingual, Chinese; MiniLM, BGE, E5, GTE and other embedding models made of it.

Reference: transformers.BertModel and its heads. Paper: Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers".
"""

from pathlib import Path

from flatlm.layers.encoder_config import EncoderConfig
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.encoder_parts import read_encoder, read_parts
from flatlm.utilities.configs.encoder_tasks import HeadStyle, read_head
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model
from flatlm.utilities.weights.tensor_names import HeadNames, TensorNames

__all__ = ["TENSOR_NAMES", "BertConfigBuilder", "build_model"]

TENSOR_NAMES = TensorNames(
    embedding="bert.embeddings.word_embeddings",
    final_norm="",
    position_embedding="bert.embeddings.position_embeddings",
    token_type_embedding="bert.embeddings.token_type_embeddings",
    embedding_norm="bert.embeddings.LayerNorm",
    attn_query_proj="bert.encoder.layer.{}.attention.self.query",
    attn_key_proj="bert.encoder.layer.{}.attention.self.key",
    attn_value_proj="bert.encoder.layer.{}.attention.self.value",
    attn_output_proj="bert.encoder.layer.{}.attention.output.dense",
    pre_attn_norm="bert.encoder.layer.{}.attention.output.LayerNorm",
    ff_up_proj="bert.encoder.layer.{}.intermediate.dense",
    ff_down_proj="bert.encoder.layer.{}.output.dense",
    pre_ff_norm="bert.encoder.layer.{}.output.LayerNorm",
    pooler="bert.pooler.dense",
    heads=(
        HeadNames(
            "masklm",
            "cls.predictions.decoder",
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            bias="cls.predictions.bias",
            ignored=("cls.seq_relationship.*",),
        ),
        HeadNames("classification", "classifier", "bert.pooler.dense"),
        HeadNames("token-classification", "classifier"),
        HeadNames("question-answering", "qa_outputs"),
    ),
    prefixes=(("bert.", ""),),
    ignored=("*embeddings.position_ids",),  # 0, 1, 2, ...
)


class BertConfigBuilder(ConfigBuilder):
    """config.json of transformers.BertConfig."""

    family = "bert"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> EncoderConfig:
        parts = read_parts(hf_config)
        task, head = read_head(hf_config, model_path, TENSOR_NAMES, HeadStyle(parts.activation, parts.norm))
        return read_encoder(hf_config, parts, task, head)


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
