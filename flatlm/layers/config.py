"""Frozen configurations of the blocks. Data only: no callables, no tensors, absent is None.

Legend: B batch, T tokens, S cache slots, N query heads, K key/value heads, H head width, D model width, F feed-forward width, V vocabulary.
Every config is hashable, and two layers whose `BlockConfig`s are equal are one *block kind*: compiled once, stamped as often as it occurs.
"""

from dataclasses import dataclass
from enum import StrEnum


class Activation(StrEnum):
    """The feed-forward's non-linearity, named as checkpoints name it in `hidden_act`."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_pytorch_tanh"
    RELU = "relu"


class NormKind(StrEnum):
    """RMS norm (Zhang and Sennrich 2019, equation 4) or layer norm (Ba et al. 2016)."""

    RMS = "rms_norm"
    LAYER = "layer_norm"


@dataclass(frozen=True)
class NormConfig:
    """A norm over the last dimension. A layer norm has a bias where `bias` says so; an RMS norm never has."""

    kind: NormKind = NormKind.RMS
    eps: float = 1e-5
    bias: bool = False


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (Chen et al. 2023): every frequency is divided by `factor`."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's scaling: low frequencies are divided by `factor`, high ones kept, those between interpolated.

    Wavelengths are compared with `original_max_positions` over `low_freq_factor` and `high_freq_factor`.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


RopeScaling = LinearScaling | Llama3Scaling


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021) in the layout of halves: entry i turns with entry i + H/2."""

    head_dim: int
    base: float = 10000.0
    scaling: RopeScaling | None = None


@dataclass(frozen=True)
class AttentionConfig:
    """Causal self-attention with grouped queries (Ainslie et al. 2023): N query heads share K key/value heads, N % K == 0."""

    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    rope: RopeConfig
    qkv_bias: bool = False
    output_bias: bool = False


@dataclass(frozen=True)
class FeedForwardConfig:
    """Gated: down(act(gate(x)) * up(x)) (Shazeer 2020); plain: down(act(up(x)))."""

    hidden_dim: int
    activation: Activation = Activation.SILU
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True)
class BlockConfig:
    """A pre-norm decoder block: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    attention: AttentionConfig
    feed_forward: FeedForwardConfig
    attention_norm: NormConfig = NormConfig()
    feed_forward_norm: NormConfig = NormConfig()


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only language model. `max_positions` is the longest context that it was trained for, in tokens."""

    vocab_size: int
    embedding_dim: int
    blocks: tuple[BlockConfig, ...]
    max_positions: int
    final_norm: NormConfig = NormConfig()
    tied_head: bool = False
    head_bias: bool = False

    @property
    def block_kinds(self) -> tuple[BlockConfig, ...]:
        """The distinct blocks, in order of first occurrence."""
        return tuple(dict.fromkeys(self.blocks))

    @property
    def ropes(self) -> tuple[RopeConfig, ...]:
        """The distinct rotary embeddings, in order of first occurrence: the prologue makes one pair of tables for each."""
        return tuple(dict.fromkeys(block.attention.rope for block in self.blocks))
