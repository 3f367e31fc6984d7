"""Rotary position embedding (Su et al. 2021, section 3.4.2) with its scalings, in the layout of halves that checkpoints use."""

import math

import torch
from torch import Tensor

from flatlm.layers.config import LinearScaling, Llama3Scaling, RopeConfig


def inverse_frequencies(config: RopeConfig) -> Tensor:
    """Radians a position, [H/2] float32: base^(-2i/H), then scaled."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device="cpu").to(torch.float32) / config.head_dim
    frequencies = 1.0 / (config.base**exponents)
    match config.scaling:
        case LinearScaling(factor):
            return frequencies / factor
        case Llama3Scaling():
            return _llama3(frequencies, config.scaling)
        case None:
            return frequencies


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    wavelengths = 2 * math.pi / frequencies
    low_wavelength = scaling.original_max_positions / scaling.low_freq_factor
    high_wavelength = scaling.original_max_positions / scaling.high_freq_factor
    smooth = (scaling.original_max_positions / wavelengths - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    between = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    scaled = torch.where(wavelengths > low_wavelength, frequencies / scaling.factor, frequencies)
    is_between = (wavelengths <= low_wavelength) & (wavelengths >= high_wavelength)
    return torch.where(is_between, between, scaled)


def rope_tables(config: RopeConfig, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines [positions, H] and *signed* sines [positions, H]: the first half is negated, so that `rotate` need not."""
    angles = torch.outer(torch.arange(positions, dtype=torch.float32, device="cpu"), inverse_frequencies(config))
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn heads x [B, T, heads, H] by cos and signed sin [T, 1, H]: x * cos + swap_halves(x) * sin."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([x[..., half:], x[..., :half]], -1) * sin
