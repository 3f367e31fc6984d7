"""Frozen configurations of encoders: models that read a text as a whole, and of the heads that they end in.

Legend: B batch, T tokens, V vocabulary, E width of the tables, D model width, C labels. Data only; a kind of head is a type.
"""

from dataclasses import dataclass
from enum import StrEnum

from flatlm.layers.config import Activation, BlockConfig, NormConfig


@dataclass(frozen=True)
class LearnedPositions:
    """A table of `rows` positions, of which a token adds one.

    `padding_id` None: the token at index i of its text adds row i. Else only tokens other than that id are counted: the n-th of them
    (from 1) adds row padding_id + n, and the padding itself row padding_id, as fairseq counts (RoBERTa).
    """

    rows: int
    padding_id: int | None = None

    @property
    def longest(self) -> int:
        """The most tokens of a text that has a row for each."""
        return self.rows if self.padding_id is None else self.rows - self.padding_id - 1


@dataclass(frozen=True)
class PoolerConfig:
    """What stands for a whole text: activation(dense(x)) of its first token [D] (Devlin et al. 2019, section 3)."""

    activation: Activation = Activation.TANH


@dataclass(frozen=True)
class HiddenStates:
    """No head: `hidden_states` [B, T, D] as the last block gives them, and `pooled` [B, D] where there is a pooler."""

    pooler: PoolerConfig | None = None


@dataclass(frozen=True)
class MaskedLMHead:
    """Which token each one is or was: `logits` [B, T, V] = decoder(norm(activation(dense(x)))) + bias. The dense layer's width is E.

    `tied`: the decoder's matrix is the embedding.
    """

    activation: Activation
    norm: NormConfig
    tied: bool = True


@dataclass(frozen=True)
class SequenceHead:
    """What a whole text is: `logits` [B, C] = output(pooler(x)). The families differ in the pooler's activation alone."""

    labels: int
    pooler: PoolerConfig = PoolerConfig()


@dataclass(frozen=True)
class TokenHead:
    """What each token is: `logits` [B, T, C] = output(x), or output(activation(dense(x))) where there is an activation."""

    labels: int
    activation: Activation | None = None


class Pooling(StrEnum):
    """How a text's hidden states become one: their mean, their largest values, or the first token's."""

    MEAN = "mean"
    MAX = "max"
    CLS = "cls"


@dataclass(frozen=True)
class EmbeddingHead:
    """Where a text lies: `embedding` [B, D], pooled from the hidden states of its real tokens.

    `normalised`: its length is 1, so that a product of two is their cosine (Reimers and Gurevych 2019).
    """

    pooling: Pooling = Pooling.MEAN
    normalised: bool = False


Head = HiddenStates | MaskedLMHead | SequenceHead | TokenHead | EmbeddingHead


@dataclass(frozen=True)
class EncoderConfig:
    """A model that reads a text as a whole: every token sees every real token.

    `blocks` are those that have weights of their own; `layers` says which of them each layer runs, so that several may share one (ALBERT).
    `projected`: the tables' rows, of width E = `embedding_dim`, go through a matrix to the width D = `width`; without it E is D.
    `token_types`: rows of the table that tells one part of the text from another (0: there is none).
    `embedding_norm`: of the sum of what the tables give. `group`: so many blocks, one after the other, are counted as one by checkpoints.
    `task`: what the head is for, by its name in `utilities/configs/encoder_tasks.py`.
    """

    vocab_size: int
    embedding_dim: int
    width: int
    blocks: tuple[BlockConfig, ...]
    layers: tuple[int, ...]
    positions: LearnedPositions
    embedding_norm: NormConfig
    head: Head
    task: str
    token_types: int = 0
    projected: bool = False
    group: int = 1

    @property
    def block_kinds(self) -> tuple[BlockConfig, ...]:
        """The distinct blocks, in order of first occurrence."""
        return tuple(dict.fromkeys(self.blocks))

    @property
    def max_positions(self) -> int:
        """The longest text, in tokens."""
        return self.positions.longest

    @property
    def tied_head(self) -> bool:
        """Whether the embedding is the decoder's matrix too."""
        return isinstance(self.head, MaskedLMHead) and self.head.tied

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the model gives, by name."""
        match self.head:
            case HiddenStates(None):
                return ("hidden_states",)
            case HiddenStates():
                return ("hidden_states", "pooled")
            case EmbeddingHead():
                return ("embedding",)
            case _:
                return ("logits",)
