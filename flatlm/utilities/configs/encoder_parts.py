"""Parts of a config.json that encoders of BERT's kind share (Devlin et al. 2019)."""

from dataclasses import dataclass
from typing import Any, Self

from flatlm.layers.config import Activation, AttentionConfig, BlockConfig, FeedForwardConfig, NormConfig, NormKind
from flatlm.layers.encoder_config import EncoderConfig, Head, LearnedPositions
from flatlm.utilities.configs.config_parts import ACTIVATIONS
from flatlm.utilities.configs.config_reader import ConfigReader

DROPOUTS = ("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout", "classifier_dropout_prob")
UNREAD = (
    "num_labels",
    "_num_labels",
    "gradient_checkpointing",
    "directionality",
    "embedding_dropout_prob",
    "gap_size",
    "net_structure_type",
    "num_memory_blocks",
    "down_scale_factor",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "model_max_length",
)
"""Keys that published checkpoints have and that the reference does not read."""


@dataclass(frozen=True)
class EncoderParts:
    """What all blocks and heads of an encoder are made of: the width D, the activation, the norm, and the block itself."""

    width: int
    activation: Activation
    norm: NormConfig
    block: BlockConfig

    @classmethod
    def of(cls, width: int, heads: int, hidden: int, activation: Activation, eps: float) -> Self:
        """Attention with as many keys as queries, a plain feed-forward, biases everywhere, norms after the sums."""
        norm = NormConfig(NormKind.LAYER, eps, bias=True)
        attention = AttentionConfig(heads, heads, width // heads, None, qkv_bias=True, output_bias=True)
        block = BlockConfig(attention, FeedForwardConfig(hidden, activation, gated=False, bias=True), norm, norm, norm_after=True)
        return cls(width, activation, norm, block)


def read_parts(hf_config: ConfigReader, *, activation: str = "gelu") -> EncoderParts:
    """The parts by the keys that BERT's descendants share; `activation`: the family's, where config.json names none.

    Raises ConfigError, also for positions that are not rows of a table, and for a model that was made a decoder.
    """
    for key, only in (("position_embedding_type", "absolute"), ("is_decoder", False), ("add_cross_attention", False)):
        hf_config.require(key, only)
    hf_config.skip(*DROPOUTS, *UNREAD)
    width, heads = hf_config.positive_int("hidden_size"), hf_config.positive_int("num_attention_heads")
    if width % heads:
        raise hf_config.wrong("hidden_size", f"is not a multiple of num_attention_heads = {heads}")
    hidden = hf_config.positive_int("intermediate_size")
    chosen = hf_config.choice("hidden_act", ACTIVATIONS, activation)
    return EncoderParts.of(width, heads, hidden, chosen, hf_config.positive_float("layer_norm_eps", 1e-12))


def read_encoder(hf_config: ConfigReader, parts: EncoderParts, task: str, head: Head, **more: Any) -> EncoderConfig:
    """The encoder around its blocks, each layer with one of its own. `more`: the other fields of an EncoderConfig, or other values."""
    layers = hf_config.positive_int("num_hidden_layers")
    fields = {
        "embedding_dim": parts.width,
        "blocks": (parts.block,) * layers,
        "layers": tuple(range(layers)),
        "positions": LearnedPositions(hf_config.positive_int("max_position_embeddings", 512)),
        "token_types": hf_config.whole("type_vocab_size", 2),
    }
    vocab = hf_config.positive_int("vocab_size")
    return EncoderConfig(vocab, width=parts.width, embedding_norm=parts.norm, head=head, task=task, **{**fields, **more})
