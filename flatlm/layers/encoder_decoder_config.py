"""The frozen configuration of an encoder with a decoder. Data only, as `layers.config` has it.

Legend: B batch, T tokens, S_e the encoder's slots, N query heads, K key/value heads, H head width, D model width, V vocabulary.
"""

from dataclasses import dataclass

from flatlm.layers.config import AttentionConfig, BlockConfig, NormConfig, PositionEmbeddingConfig


@dataclass(frozen=True)
class RelativeBiasConfig:
    """What is added to a score by how far the key lies from the query (Raffel et al. 2020, section 2.1): a table [buckets, N].

    `bidirectional`: half of the buckets are for keys behind the query; without it, keys lie before it or on it. Half of those that a
    direction has are for one distance each, the rest for ranges that grow with the logarithm; from `max_distance` on all share the last.
    """

    buckets: int
    max_distance: int
    bidirectional: bool


@dataclass(frozen=True)
class StackConfig:
    """The blocks of an encoder or of a decoder, and what lies before and behind them. None: the model has none.

    `relative_bias`: one table for all blocks of the stack. `embedding_norm` normalises what the first block reads.
    `max_positions`: the longest text, in tokens; None where positions have no end.
    """

    blocks: tuple[BlockConfig, ...]
    position_embedding: PositionEmbeddingConfig | None = None
    relative_bias: RelativeBiasConfig | None = None
    embedding_norm: NormConfig | None = None
    final_norm: NormConfig | None = None
    max_positions: int | None = None

    @property
    def block_kinds(self) -> tuple[BlockConfig, ...]:
        """The distinct blocks, in order of first occurrence."""
        return tuple(dict.fromkeys(self.blocks))


@dataclass(frozen=True)
class WritingConfig:
    """Which tokens frame what the decoder writes. None: there is none.

    `start`: read before the first (`decoder_start_token_id`). `ends`: any of them ends the text. `pad`: fills texts that are read.
    `forced_first`: is always the first that is written, and `forced_last` the last where a text is as long as it may be.
    `wraps`: in training a text's last token, its language, stands in the place of `start` (mBART).
    """

    start: int
    ends: tuple[int, ...]
    pad: int
    forced_first: int | None = None
    forced_last: int | None = None
    wraps: bool = False


@dataclass(frozen=True)
class EncoderDecoderConfig:
    """A text read as a whole by `encoder`, and another written token by token by `decoder`, whose blocks look at the first through `cross`.

    `cross` is the attention of every block of the decoder to the encoder's output, between its self-attention and its feed-forward;
    `cross_norm` its norm, before or after it as the block has its others. `shared_embedding`: both stacks read one table [V, D], else the
    encoder has its own. `embedding_scale` multiplies the tables' rows; `head_scale` what the head reads (T5: D^-1/2 where the head
    is tied). `logits_bias`: a bias [1, V] beside the head (BART's `final_logits_bias`).
    """

    vocab_size: int
    embedding_dim: int
    encoder: StackConfig
    decoder: StackConfig
    cross: AttentionConfig
    cross_norm: NormConfig
    writing: WritingConfig
    tied_head: bool = True
    shared_embedding: bool = True
    logits_bias: bool = False
    embedding_scale: float = 1.0
    head_scale: float = 1.0

    @property
    def blocks(self) -> tuple[BlockConfig, ...]:
        """Of both stacks, the encoder's first."""
        return self.encoder.blocks + self.decoder.blocks

    @property
    def block_kinds(self) -> tuple[BlockConfig, ...]:
        """The distinct blocks of each stack: those of different stacks are never one."""
        return self.encoder.block_kinds + self.decoder.block_kinds

    @property
    def max_positions(self) -> int | None:
        """The longest text that both stacks know, in tokens; None where positions have no end."""
        return min((stack.max_positions for stack in (self.encoder, self.decoder) if stack.max_positions is not None), default=None)
