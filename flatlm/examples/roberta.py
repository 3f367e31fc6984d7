"""RoBERTa and XLM-RoBERTa: BERT's body; positions that count real tokens, from padding_idx + 1.

Reference: transformers.RobertaModel, XLMRobertaModel and their heads. Papers: Liu et al. 2019, "RoBERTa"; Conneau et al. 2020, "XLM-R".
"""

from pathlib import Path

from flatlm.layers.config import Activation
from flatlm.layers.encoder_config import EncoderConfig, LearnedPositions
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.encoder_parts import read_encoder, read_parts
from flatlm.utilities.configs.encoder_tasks import HeadStyle, read_head
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model
from flatlm.utilities.weights.tensor_names import HeadNames, TensorNames

__all__ = ["TENSOR_NAMES", "RobertaConfigBuilder", "build_model"]

TENSOR_NAMES = TensorNames(
    embedding="roberta.embeddings.word_embeddings",
    final_norm="",
    position_embedding="roberta.embeddings.position_embeddings",
    token_type_embedding="roberta.embeddings.token_type_embeddings",
    embedding_norm="roberta.embeddings.LayerNorm",
    attn_query_proj="roberta.encoder.layer.{}.attention.self.query",
    attn_key_proj="roberta.encoder.layer.{}.attention.self.key",
    attn_value_proj="roberta.encoder.layer.{}.attention.self.value",
    attn_output_proj="roberta.encoder.layer.{}.attention.output.dense",
    pre_attn_norm="roberta.encoder.layer.{}.attention.output.LayerNorm",
    ff_up_proj="roberta.encoder.layer.{}.intermediate.dense",
    ff_down_proj="roberta.encoder.layer.{}.output.dense",
    pre_ff_norm="roberta.encoder.layer.{}.output.LayerNorm",
    pooler="roberta.pooler.dense",
    heads=(
        HeadNames("masklm", "lm_head.decoder", "lm_head.dense", "lm_head.layer_norm", bias="lm_head.bias"),
        HeadNames("classification", "classifier.out_proj", "classifier.dense"),
        HeadNames("token-classification", "classifier"),
        HeadNames("question-answering", "qa_outputs"),
    ),
    prefixes=(("roberta.", ""),),
    ignored=("*embeddings.position_ids",),  # 0, 1, 2, ...
)


class RobertaConfigBuilder(ConfigBuilder):
    """config.json of transformers.RobertaConfig and XLMRobertaConfig."""

    family = "roberta"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> EncoderConfig:
        parts = read_parts(hf_config)
        task, head = read_head(hf_config, model_path, TENSOR_NAMES, HeadStyle(Activation.GELU, parts.norm))
        rows, padding = hf_config.positive_int("max_position_embeddings", 512), hf_config.whole("pad_token_id", 1)
        if rows <= padding + 1:
            raise hf_config.wrong("max_position_embeddings", f"leaves no position beyond pad_token_id + 1 = {padding + 1}")
        return read_encoder(hf_config, parts, task, head, positions=LearnedPositions(rows, padding))


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
