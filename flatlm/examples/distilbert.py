"""DistilBERT: half of BERT's layers, without token types and pooler.

Reference: transformers.DistilBertModel and its heads. Paper: Sanh et al. 2019, "DistilBERT, a distilled version of BERT".
"""

from pathlib import Path

from flatlm.layers.config import Activation
from flatlm.layers.encoder_config import EncoderConfig, LearnedPositions
from flatlm.utilities.configs.config_parts import ACTIVATIONS
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.encoder_parts import EncoderParts
from flatlm.utilities.configs.encoder_tasks import HeadStyle, read_head
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.example import build_model
from flatlm.utilities.weights.tensor_names import HeadNames, TensorNames

__all__ = ["TENSOR_NAMES", "DistilBertConfigBuilder", "build_model"]

TENSOR_NAMES = TensorNames(
    embedding="distilbert.embeddings.word_embeddings",
    final_norm="",
    position_embedding="distilbert.embeddings.position_embeddings",
    embedding_norm="distilbert.embeddings.LayerNorm",
    attn_query_proj="distilbert.transformer.layer.{}.attention.q_lin",
    attn_key_proj="distilbert.transformer.layer.{}.attention.k_lin",
    attn_value_proj="distilbert.transformer.layer.{}.attention.v_lin",
    attn_output_proj="distilbert.transformer.layer.{}.attention.out_lin",
    pre_attn_norm="distilbert.transformer.layer.{}.sa_layer_norm",
    ff_up_proj="distilbert.transformer.layer.{}.ffn.lin1",
    ff_down_proj="distilbert.transformer.layer.{}.ffn.lin2",
    pre_ff_norm="distilbert.transformer.layer.{}.output_layer_norm",
    heads=(
        HeadNames("masklm", "vocab_projector", "vocab_transform", "vocab_layer_norm"),
        HeadNames("classification", "classifier", "pre_classifier"),
        HeadNames("token-classification", "classifier"),
        HeadNames("question-answering", "qa_outputs"),
    ),
    prefixes=(("distilbert.", ""),),
    ignored=("*embeddings.position_ids",),  # 0, 1, 2, ...
)
EPS = 1e-12
"""Of every norm: no key of config.json says it."""


class DistilBertConfigBuilder(ConfigBuilder):
    """config.json of transformers.DistilBertConfig, which has names of its own for most keys."""

    family = "distilbert"
    tensor_names = TENSOR_NAMES

    @classmethod
    def build(cls, hf_config: ConfigReader, model_path: Path) -> EncoderConfig:
        width, heads = hf_config.positive_int("dim", 768), hf_config.positive_int("n_heads", 12)
        if width % heads:
            raise hf_config.wrong("dim", f"is not a multiple of n_heads = {heads}")
        activation = hf_config.choice("activation", ACTIVATIONS, "gelu")
        parts = EncoderParts.of(width, heads, hf_config.positive_int("hidden_dim", 4 * width), activation, EPS)
        style = HeadStyle(activation, parts.norm, Activation.RELU)
        task, head = read_head(hf_config, model_path, TENSOR_NAMES, style)
        hf_config.skip("dropout", "qa_dropout", "seq_classif_dropout", "tie_weights_", "num_labels")
        hf_config.skip("sinusoidal_pos_embds")  # how the table began; it is stored all the same
        layers = hf_config.positive_int("n_layers", 6)
        return EncoderConfig(
            vocab_size=hf_config.positive_int("vocab_size"),
            embedding_dim=width,
            width=width,
            blocks=(parts.block,) * layers,
            layers=tuple(range(layers)),
            positions=LearnedPositions(hf_config.positive_int("max_position_embeddings", 512)),
            embedding_norm=parts.norm,
            head=head,
            task=task,
        )


if __name__ == "__main__":
    from flatlm.commands.convert_script import main

    main(__doc__)
