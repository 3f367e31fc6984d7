"""Scales of input channels moved from activations into weights, and what gives the activations divided by them: nothing else changes.

    y = W x = (W diag(s)) (x / s)

AWQ (Lin et al. 2023) chooses s = mean|x|^a, with the a that leaves the least error behind when W diag(s) is rounded to the nearest.
SmoothQuant (Xiao et al. 2022, equation 4) takes s = max|x|^a / max|w|^(1 - a) for a given a, so that x / s needs fewer bits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flatlm.convert.weights import WeightSource
from flatlm.layers.block import Block
from flatlm.layers.config import FeedForwardConfig, MixtureConfig, NormConfig
from flatlm.quantize.scale_search import Range, largest_scales, round_to, storable
from flatlm.quantize.schemes import Scheme
from flatlm.utilities.calibration.sources import scaled
from flatlm.utilities.calibration.stream import linears

EXPONENTS = tuple(step / 10 for step in range(11))
LARGEST_SPREAD = 1e4
"""Between the least and the greatest scale of a layer: more would only move the outliers."""


@dataclass(frozen=True)
class Pair:
    """`reads`: the projections whose inputs are divided by the scales; `gives`: the parameters that give these inputs.

    `gives` maps a parameter's name to which of its rows they are. `folded`: how many heads share a scale, (K, N/K, H), else None.
    """

    reads: tuple[str, ...]
    gives: Mapping[str, slice]
    folded: tuple[int, int, int] | None = None


def norm_pairs(block: Block) -> Iterator[Pair]:
    """What reads from a norm, and the norm."""
    config = block.config
    first = tuple(name for name in linears(block) if name.startswith("feed_forward.") and not name.endswith(".down"))
    shared = config.parallel and config.feed_forward_norm is None
    yield from _after_norm("attention_norm", config.attention_norm, ("attention.qkv", *(first if shared else ())))
    if not shared:
        yield from _after_norm("feed_forward_norm", config.feed_forward_norm, first)


def inner_pairs(block: Block) -> Iterator[Pair]:
    """The output projection and the values it sums up; the down projection and what its gate is multiplied by."""
    attention = block.config.attention
    heads, width = attention.num_kv_heads, attention.head_dim
    if attention.clip is None:
        values = slice((attention.num_query_heads + heads) * width, (attention.num_query_heads + 2 * heads) * width)
        gives = _rows(block, "attention.qkv", values)
        yield Pair(("attention.output",), gives, (heads, attention.num_query_heads // heads, width))
    feed_forward = block.config.feed_forward
    if isinstance(feed_forward, MixtureConfig):
        for expert in range(feed_forward.num_experts):
            yield from _inside(block, f"feed_forward.experts.{expert}", feed_forward.expert)
    else:
        yield from _inside(block, "feed_forward", feed_forward)


def apply(block: Block, pair: Pair, scales: Tensor, prefix: str, sources: dict[str, WeightSource]) -> None:
    """Move the scales [C] in the block at hand and in the sources that it came from."""
    parameters = dict(block.named_parameters())
    for name in pair.reads:
        weight = f"{name}.weight"
        parameters[weight].data = parameters[weight].data * scales
        sources[f"{prefix}.{weight}"] = scaled(sources[f"{prefix}.{weight}"], columns=scales)
    for name, rows in pair.gives.items():
        factors = torch.ones(parameters[name].shape[0])
        factors[rows] = 1 / scales if pair.folded is None else 1 / _one_of_group(scales, pair.folded)
        values = parameters[name].data
        parameters[name].data = values * (factors[:, None] if values.dim() == 2 else factors)
        sources[f"{prefix}.{name}"] = scaled(sources[f"{prefix}.{name}"], rows=factors)


def search(weights: Sequence[tuple[Tensor, Scheme]], hessian: Tensor, amplitude: Tensor, pair: Pair) -> Tensor:
    """AWQ's scales [C] for weights [R, C] that read the same inputs, of mean size `amplitude` [C] and with `hessian` [C, C]."""
    amplitude = _shared(amplitude, pair)
    best, least = torch.ones_like(amplitude), torch.inf
    for exponent in EXPONENTS:
        scales = _bounded(_above_zero(amplitude) ** exponent)
        error = sum(_rounding_error(weight, scales, hessian, scheme) for weight, scheme in weights)
        if error < least:
            best, least = scales, error
    return best


def smooth(weights: Sequence[Tensor], peak: Tensor, exponent: float, pair: Pair) -> Tensor:
    """SmoothQuant's scales [C] for weights that read inputs of at most `peak` [C]."""
    largest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    return _bounded(_shared(_above_zero(peak) ** exponent / _above_zero(largest) ** (1 - exponent), pair))


def _after_norm(name: str, norm: NormConfig | None, reads: tuple[str, ...]) -> Iterator[Pair]:
    if norm is not None and norm.weight:
        yield Pair(reads, {f"{name}.{kind}": slice(None) for kind in ("weight", *(("bias",) if norm.bias else ()))})


def _inside(block: Block, name: str, config: FeedForwardConfig) -> Iterator[Pair]:
    if config.gated:
        yield Pair((f"{name}.down",), _rows(block, f"{name}.gate_up", slice(config.hidden_dim, 2 * config.hidden_dim)))


def _rows(block: Block, linear: str, rows: slice) -> dict[str, slice]:
    return {f"{linear}.{kind}": rows for kind, _ in linears(block)[linear].named_parameters()}


def _shared(values: Tensor, pair: Pair) -> Tensor:
    """The mean over the heads that must share a scale."""
    if pair.folded is None:
        return values
    return values.reshape(pair.folded).mean(1, keepdim=True).expand(pair.folded).reshape(-1)


def _one_of_group(scales: Tensor, folded: tuple[int, int, int]) -> Tensor:
    return scales.reshape(folded)[:, 0].reshape(-1)


def _above_zero(values: Tensor) -> Tensor:
    """Sizes of channels, those that are hardly used taken for larger: they would only set the spread."""
    return values.clamp_min(max(float(values.max()) / LARGEST_SPREAD, 1e-8))


def _bounded(scales: Tensor) -> Tensor:
    """About 1, and within LARGEST_SPREAD of one another."""
    scales = scales.clamp_min(scales.max() / LARGEST_SPREAD)
    return scales / (scales.max() * scales.min()).sqrt()


def _rounding_error(weight: Tensor, scales: Tensor, hessian: Tensor, scheme: Scheme) -> float:
    groups = (weight * scales).reshape(-1, scheme.block_size or weight.shape[1])
    allowed = Range.of(scheme)
    steps = storable(largest_scales(groups, allowed), scheme)
    error = weight - (round_to(groups, steps, allowed) * steps[:, None]).reshape(weight.shape) / scales
    return float(((error @ hessian) * error).sum())
