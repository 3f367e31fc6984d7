"""Rotary position embedding (Su et al. 2021, section 3.4.2) with its scalings, in the layout of halves."""

import math

import torch
from torch import Tensor

from flatlm.layers.config import LinearScaling, Llama3Scaling, LongRopeScaling, RopeConfig, YarnScaling


def inverse_frequencies(config: RopeConfig, positions: int) -> Tensor:
    """Radians a position, [R/2] float32 for the R entries that turn: base^(-2i/R), scaled for a context of that many positions."""
    width = config.rotary_dim or config.head_dim
    exponents = torch.arange(0, width, 2, dtype=torch.int64, device="cpu").to(torch.float32) / width
    turns = config.base**exponents
    match config.scaling:
        case LinearScaling(factor):
            return (1.0 / turns) / factor
        case Llama3Scaling():
            return _llama3(1.0 / turns, config.scaling)
        case YarnScaling():
            return _yarn(turns, config, config.scaling)
        case LongRopeScaling(short, long, original_max_positions):
            factors = torch.tensor(long if positions > original_max_positions else short, dtype=torch.float32, device="cpu")
            return 1.0 / (factors * turns)
        case None:
            return 1.0 / turns


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    wavelengths = 2 * math.pi / frequencies
    low_wavelength = scaling.original_max_positions / scaling.low_freq_factor
    high_wavelength = scaling.original_max_positions / scaling.high_freq_factor
    smooth = (scaling.original_max_positions / wavelengths - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    between = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    scaled = torch.where(wavelengths > low_wavelength, frequencies / scaling.factor, frequencies)
    is_between = (wavelengths <= low_wavelength) & (wavelengths >= high_wavelength)
    return torch.where(is_between, between, scaled)


def _yarn(turns: Tensor, config: RopeConfig, scaling: YarnScaling) -> Tensor:
    width = 2 * len(turns)

    def entry_of(rotations: float) -> float:
        """The entry, of a real number, that turns so often within the original context."""
        return width * math.log(scaling.original_max_positions / (rotations * 2 * math.pi)) / (2 * math.log(config.base))

    low, high = entry_of(scaling.beta_fast), entry_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = (torch.arange(len(turns), dtype=torch.float32, device="cpu") - low) / (high - low if high != low else 0.001)
    interpolated = ramp.clamp(0, 1)
    return interpolated / (scaling.factor * turns) + (1 - interpolated) / turns


def rope_tables(config: RopeConfig, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines [positions, H] and *signed* sines [positions, H]: the first half is negated, so that `rotate` need not.

    Entries i of R/2 to H/2 of each half do not turn, where only R turn: their cosine is 1, their sine 0.
    """
    frequencies = inverse_frequencies(config, positions)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32, device="cpu"), frequencies)
    factor = config.scaling.attention_factor if isinstance(config.scaling, YarnScaling | LongRopeScaling) else 1.0
    still = (0, config.head_dim // 2 - len(frequencies))
    cos = torch.nn.functional.pad(angles.cos() * factor, still, value=1.0)
    sin = torch.nn.functional.pad(angles.sin() * factor, still)
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn heads x [B, T, heads, H] by cos and signed sin [T, 1, H]: x * cos + swap_halves(x) * sin."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([x[..., half:], x[..., :half]], -1) * sin


def halves_order(rope: RopeConfig, *, interleaved: bool) -> tuple[int, ...]:
    """Where each entry of a head lies in a checkpoint whose first R entries turn: as halves [0, R/2), [R/2, R), or in pairs (2i, 2i + 1).

    Queries and keys that are both reordered so give the same scores.
    """
    turning = rope.rotary_dim or rope.head_dim
    half, still = turning // 2, list(range(turning, rope.head_dim))
    first, second = (range(0, turning, 2), range(1, turning, 2)) if interleaved else (range(half), range(half, turning))
    return (*first, *still[: len(still) // 2], *second, *still[len(still) // 2 :])
