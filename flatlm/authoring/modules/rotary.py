"""Rotary position embedding: cosines and sines for a step's positions, and the turning of queries and keys."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, nn

from flatlm.authoring.modules.keywords import refuse_unknown
from flatlm.authoring.step import current_step
from flatlm.layers import ops
from flatlm.layers.config import LinearScaling, Llama3Scaling, LongRopeScaling, RopeConfig, RopeScaling, YarnScaling
from flatlm.layers.rope import rope_tables
from flatlm.utilities.configs.config_parts import positions_unscaled, read_rope
from flatlm.utilities.configs.config_reader import ConfigReader


class RopeType(Enum):
    """How frequencies are scaled, as lmdeploy names it. Dynamic NTK changes nothing within `max_position_embeddings`."""

    Default = auto()
    LinearScaling = auto()
    DynamicNTKScaling = auto()
    Llama3 = auto()
    Yarn = auto()
    LongRoPEScaling = auto()


@dataclass(frozen=True)
class Llama3Parameters:
    """Llama 3.1's scaling, beside its factor."""

    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class YarnParameters:
    """YaRN's, beside its factor. `attention_factor` None: 1 + 0.1 ln(factor)."""

    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


@dataclass(frozen=True)
class LongRoPEScalingParameters:
    """LongRoPE's factors."""

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    long_mscale: float = 1.0


class RotaryEmbedding(nn.Module):
    """Called with (x, position_ids [1, T]): cosines and sines [1, T, R], each half of R the same.

    `unscaled`: the most positions that dynamic NTK leaves as they are; None for other scalings.
    """

    def __init__(self, config: RopeConfig, unscaled: int | None = None) -> None:
        super().__init__()
        self.config, self.unscaled = config, unscaled
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.tables(current_step().positions)
        ids, width = position_ids.reshape(-1).to(torch.int32), self.config.head_dim
        shape = (*position_ids.shape, width)
        return ops.take(cos, ids, 0).reshape(shape), ops.take(sin, ids, 0).reshape(shape)

    def tables(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines for a context of `length` positions, [length, R] each; computed once, and never while a graph is traced."""
        if length not in self._tables:
            cos, signed = rope_tables(self.config, length)
            half = self.config.head_dim // 2
            self._tables[length] = cos, torch.cat([-signed[:, :half], signed[:, half:]], -1)
        return self._tables[length]


def build_rotary_embedding(
    dim: int,
    max_position_embeddings: int = 2048,
    base: float = 10000.0,
    scaling_factor: float = 1.0,
    emb_type: RopeType = RopeType.Default,
    llama3_params: Llama3Parameters | None = None,
    yarn_params: YarnParameters | None = None,
    longrope_params: LongRoPEScalingParameters | None = None,
    **keywords: Any,
) -> RotaryEmbedding:
    """Rotary embedding of the `dim` entries that turn. Raises ValueError where the parameters of `emb_type` are missing."""
    refuse_unknown(build_rotary_embedding, keywords, partial_rotary_factor=1.0)
    scaling: RopeScaling | None = None
    match emb_type:
        case RopeType.LinearScaling if scaling_factor != 1.0:
            scaling = LinearScaling(float(scaling_factor))
        case RopeType.Llama3:
            given = _required(llama3_params, "llama3_params", emb_type)
            scaling = Llama3Scaling(
                float(scaling_factor), given.low_freq_factor, given.high_freq_factor, given.original_max_position_embeddings
            )
        case RopeType.Yarn:
            own = _required(yarn_params, "yarn_params", emb_type)
            reader = ConfigReader(
                {
                    "rope_scaling": {
                        "rope_type": "yarn",
                        "factor": scaling_factor,
                        "original_max_position_embeddings": max_position_embeddings,
                        "beta_fast": own.beta_fast,
                        "beta_slow": own.beta_slow,
                        "attention_factor": own.attention_factor,
                    }
                },
                "yarn_params",
            )
            scaling = read_rope(reader, dim).scaling
            assert isinstance(scaling, YarnScaling)
        case RopeType.LongRoPEScaling:
            long = _required(longrope_params, "longrope_params", emb_type)
            scaling = LongRopeScaling(
                tuple(long.short_factor), tuple(long.long_factor), long.original_max_position_embeddings, long.long_mscale
            )
        case _:
            pass
    dynamic = emb_type is RopeType.DynamicNTKScaling and scaling_factor != 1.0
    return RotaryEmbedding(RopeConfig(dim, float(base), scaling), max_position_embeddings if dynamic else None)


def build_rotary_embedding_from_config(config: Any, **keywords: Any) -> RotaryEmbedding:
    """As the checkpoint's config.json says: rope_theta, rope_scaling, rope_parameters, partial_rotary_factor."""
    refuse_unknown(build_rotary_embedding_from_config, keywords)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = read_rope(config, width)
    return RotaryEmbedding(RopeConfig(rope.rotary_dim or width, rope.base, rope.scaling), positions_unscaled(config))


class ApplyRotaryEmb(nn.Module):
    """Turns queries and keys [..., heads, R] by cosines and sines [..., R]: entry i with entry i + R/2. `inplace` means nothing here."""

    def forward(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, inplace: bool = True) -> tuple[Tensor, Tensor]:
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
        return _turned(query, cos, sin), _turned(key, cos, sin)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def _required(given: Any, name: str, emb_type: RopeType) -> Any:
    if given is None:
        raise ValueError(f"{emb_type} needs {name}")
    return given
