"""The operators of a checked flow: frozen records over numbered values, of which each is written once.

A value has B = 1 and T tokens, which its shape leaves out: (D,) is [1, T, D], (N, H) is [1, T, N, H].
"""

from dataclasses import dataclass
from enum import StrEnum

from flatlm.layers.config import AttentionConfig, RopeConfig

Tensors = tuple[str, ...]
"""Checkpoint tensors whose rows, one below the other, are a weight."""


@dataclass(frozen=True)
class Node:
    """What reads the values `inputs` and writes the value `output`."""

    inputs: tuple[int, ...]
    output: int


@dataclass(frozen=True)
class Weighted(Node):
    """A node with a weight and perhaps a bias: their tensors, until it is named; from then on `module`, the path of its module."""

    weight: Tensors
    bias: Tensors
    module: str


class Ids(StrEnum):
    """What a table is looked up by."""

    TOKENS = "tokens"
    POSITIONS = "input_pos"


@dataclass(frozen=True)
class Lookup(Weighted):
    """Rows of a table [rows, width]."""

    ids: Ids
    rows: int
    width: int


@dataclass(frozen=True)
class Product(Weighted):
    """x [..., in_features] times the weight, plus the bias: [..., out_features]. `tied_to`: the module whose weight it shares."""

    in_features: int
    out_features: int
    has_bias: bool = False
    tied_to: str | None = None


@dataclass(frozen=True)
class Normed(Weighted):
    """RMS norm over the last dimension, of `width`."""

    width: int
    eps: float


@dataclass(frozen=True)
class Columns(Node):
    """Entries [start, stop) of the last dimension."""

    start: int
    stop: int


@dataclass(frozen=True)
class Heads(Node):
    """The last dimension as [count, width]."""

    count: int
    width: int


@dataclass(frozen=True)
class SomeHeads(Node):
    """Heads [start, stop) of [heads, H]."""

    start: int
    stop: int


@dataclass(frozen=True)
class Turning:
    """Which rotation: `pairs` entries i of a head turn with entries i + H/2, as far as `rope` turns them; the others stay."""

    rope: RopeConfig
    pairs: int


@dataclass(frozen=True)
class Turned(Node):
    """Heads turned by their positions."""

    turning: Turning


@dataclass(frozen=True)
class Attended(Node):
    """Attention of (queries, keys, values) over the cache of layer `cache`, or of the layer at hand where that is `{}`."""

    cache: str
    config: AttentionConfig


@dataclass(frozen=True)
class Sum(Node):
    """The first plus `alpha` times the second."""

    alpha: float


@dataclass(frozen=True)
class Multiplied(Node):
    """The first times the second."""


@dataclass(frozen=True)
class Activated(Node):
    """x * sigmoid(x)."""


@dataclass(frozen=True)
class Gated(Node):
    """From [gate | up], each of `width`: silu(gate) * up."""

    width: int
