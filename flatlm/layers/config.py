"""Frozen configurations of the blocks. Data only: no callables, no tensors, absent is None.

Legend: B batch, T tokens, S cache slots, N query heads, K key/value heads, H head width, D model width, F feed-forward width, V vocabulary.
Every config is hashable, and two layers whose `BlockConfig`s are equal are one *block kind*: compiled once, stamped as often as it occurs.
"""

from dataclasses import dataclass
from enum import StrEnum

MASKED = -1e9
"""Added to a score that must not count: its softmax is exactly zero in float32, and it cannot overflow."""


class Activation(StrEnum):
    """A feed-forward's or a head's non-linearity, named as checkpoints name it in `hidden_act`."""

    SILU = "silu"
    GELU = "gelu"
    GELU_TANH = "gelu_pytorch_tanh"
    RELU = "relu"
    TANH = "tanh"


class NormKind(StrEnum):
    """RMS norm (Zhang and Sennrich 2019, equation 4) or layer norm (Ba et al. 2016)."""

    RMS = "rms_norm"
    LAYER = "layer_norm"


@dataclass(frozen=True)
class NormConfig:
    """A norm over the last dimension. `bias`: a layer norm may have one; `weight`: False where the model only normalises (OLMo)."""

    kind: NormKind = NormKind.RMS
    eps: float = 1e-5
    bias: bool = False
    weight: bool = True


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


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, section 3.2): frequencies that turn fewer than `beta_slow` times in the original context are divided by
    `factor`, those of more than `beta_fast` turns kept, a linear ramp between; tables are multiplied by `attention_factor`.

    `truncate`: the ramp's ends are whole dimensions.
    """

    factor: float
    original_max_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024): each frequency is divided by its own factor, from `short_factors` in a context of up to
    `original_max_positions`, from `long_factors` in a longer one; tables are multiplied by `attention_factor`.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int
    attention_factor: float


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021) in the layout of halves: entry i turns with entry i + H/2.

    `rotary_dim`: how many of a head's entries turn (None: all). The others' frequencies are zero. Checkpoints that order a head's entries
    otherwise (pairs side by side, turning entries first) are reordered while they are loaded.
    """

    head_dim: int
    base: float = 10000.0
    scaling: RopeScaling | None = None
    rotary_dim: int | None = None


class NormSpan(StrEnum):
    """What a query/key norm normalises: each head by itself (weights [N + K, H]), or all heads at once (weights [NH] and [KH])."""

    HEAD = "head"
    ALL = "all"


@dataclass(frozen=True)
class QueryKeyNormConfig:
    """The norm of queries and keys before they are turned."""

    norm: NormConfig
    span: NormSpan = NormSpan.HEAD


@dataclass(frozen=True)
class MaskConfig:
    """What a query may see: itself and `window` - 1 tokens before it (None: all before it).

    `alibi_slopes`: added to the score for each token of distance, negated, one for each query head (Press et al. 2022).
    `alibi_rounded_scale`: with it, what is added is the slope times the key's position, each and their product rounded to bfloat16, times
    this scale (Falcon, which has no window).
    `prefix`: all see, besides, the tokens of the context, as many as a step says (Du et al. 2022, section 2.2); no window goes with it.
    """

    window: int | None = None
    alibi_slopes: tuple[float, ...] | None = None
    alibi_rounded_scale: float | None = None
    prefix: bool = False


class CacheDtype(StrEnum):
    """What a KV cache holds its numbers as. int8 counts in a float32 scale of its own for each token and key/value head."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"

    @property
    def bytes(self) -> int:
        """Of one number."""
        return {CacheDtype.FLOAT32: 4, CacheDtype.FLOAT16: 2, CacheDtype.INT8: 1}[self]


@dataclass(frozen=True)
class AttentionConfig:
    """Causal self-attention with grouped queries (Ainslie et al. 2023): N query heads share K key/value heads, N % K == 0.

    `rope`: None where positions are not turned in (NoPE, learned positions, ALiBi). `scale`: of the scores (None: H^-1/2).
    `softcap`: scores become softcap * tanh(scores / softcap). `clip`: q, k and v are clamped to [-clip, clip],
    after their norm.
    """

    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    rope: RopeConfig | None
    qkv_bias: bool = False
    output_bias: bool = False
    mask: MaskConfig = MaskConfig()
    scale: float | None = None
    softcap: float | None = None
    qk_norm: QueryKeyNormConfig | None = None
    clip: float | None = None


@dataclass(frozen=True)
class FeedForwardConfig:
    """Gated: down(act(gate(x)) * up(x)) (Shazeer 2020); plain: down(act(up(x)))."""

    hidden_dim: int
    activation: Activation = Activation.SILU
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True)
class MixtureConfig:
    """A sparse mixture (Shazeer et al. 2017): each token goes through the `experts_per_token` experts that the router likes best.

    A token's experts are weighted by the router's softmax over all experts, which `renormalize` makes sum to 1 over the chosen ones.
    """

    expert: FeedForwardConfig
    num_experts: int
    experts_per_token: int
    renormalize: bool = True


@dataclass(frozen=True)
class BlockConfig:
    """A block: x + attention(norm(x)), then x + feed_forward(norm(x)).

    A norm that is None is left out; `*_post_norm` normalises what is added to x. `parallel`: both branches read the same x, and where
    there is no `feed_forward_norm` the same norm of it. `residual_scale` multiplies both branches. `norm_after`: `attention_norm` and
    `feed_forward_norm` normalise the sums instead, norm(x + attention(x)) and norm(x + feed_forward(x)), as BERT and BART do.
    """

    attention: AttentionConfig
    feed_forward: FeedForwardConfig | MixtureConfig
    attention_norm: NormConfig | None = NormConfig()
    feed_forward_norm: NormConfig | None = NormConfig()
    attention_post_norm: NormConfig | None = None
    feed_forward_post_norm: NormConfig | None = None
    parallel: bool = False
    residual_scale: float = 1.0
    norm_after: bool = False


@dataclass(frozen=True)
class PositionEmbeddingConfig:
    """A learned table of positions: the token at position p adds row p + `offset` of `rows` rows."""

    rows: int
    offset: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only language model. `max_positions` is the longest context that it was trained for, in tokens.

    `embedding_scale` multiplies the embedding's rows, `logit_scale` the logits; `logit_softcap`: logits become cap * tanh(logits / cap).
    """

    vocab_size: int
    embedding_dim: int
    blocks: tuple[BlockConfig, ...]
    max_positions: int
    final_norm: NormConfig = NormConfig()
    tied_head: bool = False
    head_bias: bool = False
    position_embedding: PositionEmbeddingConfig | None = None
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    block_position_embedding: PositionEmbeddingConfig | None = None
    """A second table, of places within a blank: the model fills blanks, and a step says both places of each token, and its context's length
    (`layers.infilling.Places`)."""

    @property
    def fills_blanks(self) -> bool:
        """Is a step told `position_ids` and `prefix`, and is a context read whole?"""
        return self.block_position_embedding is not None

    @property
    def block_kinds(self) -> tuple[BlockConfig, ...]:
        """The distinct blocks, in order of first occurrence."""
        return tuple(dict.fromkeys(self.blocks))

    @property
    def ropes(self) -> tuple[RopeConfig, ...]:
        """The distinct rotary embeddings, in order of first occurrence: the prologue makes one pair of tables for each."""
        return tuple(dict.fromkeys(block.attention.rope for block in self.blocks if block.attention.rope is not None))
