"""ALBERT: narrow tables, and layers that share the weights of a few groups of blocks.

Reference: transformers.AlbertModel and its heads. Paper: Lan et al. 2020, "ALBERT: A Lite BERT".
"""

from pathlib import Path

from flatlm.layers.encoder_config import EncoderConfig
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.encoder_parts import read_encoder, read_parts
from flatlm.utilities.configs.encoder_tasks import HeadStyle, read_head
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model
from flatlm.utilities.weights.tensor_names import HeadNames, TensorNames

__all__ = ["TENSOR_NAMES", "AlbertConfigBuilder", "build_model"]

TENSOR_NAMES = TensorNames(
    embedding="albert.embeddings.word_embeddings",
    final_norm="",
    position_embedding="albert.embeddings.position_embeddings",
    token_type_embedding="albert.embeddings.token_type_embeddings",
    embedding_norm="albert.embeddings.LayerNorm",
    embedding_proj="albert.encoder.embedding_hidden_mapping_in",
    attn_query_proj="albert.encoder.albert_layer_groups.{}.albert_layers.{}.attention.query",
    attn_key_proj="albert.encoder.albert_layer_groups.{}.albert_layers.{}.attention.key",
    attn_value_proj="albert.encoder.albert_layer_groups.{}.albert_layers.{}.attention.value",
    attn_output_proj="albert.encoder.albert_layer_groups.{}.albert_layers.{}.attention.dense",
    pre_attn_norm="albert.encoder.albert_layer_groups.{}.albert_layers.{}.attention.LayerNorm",
    ff_up_proj="albert.encoder.albert_layer_groups.{}.albert_layers.{}.ffn",
    ff_down_proj="albert.encoder.albert_layer_groups.{}.albert_layers.{}.ffn_output",
    pre_ff_norm="albert.encoder.albert_layer_groups.{}.albert_layers.{}.full_layer_layer_norm",
    pooler="albert.pooler",
    heads=(
        HeadNames(
            "masklm",
            "predictions.decoder",
            "predictions.dense",
            "predictions.LayerNorm",
            bias="predictions.bias",
            ignored=("sop_classifier.*",),
        ),
        HeadNames("classification", "classifier", "albert.pooler"),
        HeadNames("token-classification", "classifier"),
        HeadNames("question-answering", "qa_outputs"),
    ),
    prefixes=(("albert.", ""),),
    ignored=("*embeddings.position_ids",),  # 0, 1, 2, ...
)


class AlbertConfigBuilder(ConfigBuilder):
    """config.json of transformers.AlbertConfig."""

    family = "albert"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> EncoderConfig:
        parts = read_parts(hf_config, activation="gelu_new")
        task, head = read_head(hf_config, model_path, TENSOR_NAMES, HeadStyle(parts.activation, parts.norm))
        layers, groups = hf_config.positive_int("num_hidden_layers"), hf_config.positive_int("num_hidden_groups", 1)
        size = hf_config.positive_int("inner_group_num", 1)
        if groups > layers:
            raise hf_config.wrong("num_hidden_groups", f"is more than num_hidden_layers = {layers}: some groups would never run")
        order = [int(layer / (layers / groups)) for layer in range(layers)]  # rounded as the reference does
        return read_encoder(
            hf_config,
            parts,
            task,
            head,
            embedding_dim=hf_config.positive_int("embedding_size", 128),
            projected=True,
            blocks=(parts.block,) * (groups * size),
            layers=tuple(group * size + place for group in order for place in range(size)),
            group=size,
        )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
