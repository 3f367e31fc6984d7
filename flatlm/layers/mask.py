"""Attention masks, additive."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatlm.layers.config import MASKED, AttentionConfig, MaskConfig


def attention_mask(config: MaskConfig, input_pos: Tensor, key_pos: Tensor, prefix: Tensor | None = None) -> Tensor:
    """What a token at input_pos [T] may see of the slots that hold the positions key_pos [S]: 0, or a bias, where it may, else MASKED.

    [T, S] float32; with ALiBi [N, T, S]. A negative position is an empty slot of a ring, as only layers with a window have.
    `prefix` [1] int32: how many positions all may see, where the configuration has such (None: none).
    """
    visible = key_pos[None, :] <= input_pos[:, None]
    if config.prefix and prefix is not None:
        visible = visible | (key_pos < prefix)[None, :]
    if config.window is not None:
        visible = visible & (key_pos[None, :] > input_pos[:, None] - config.window) & (key_pos >= 0)[None, :]
    if config.alibi_slopes is None:
        return torch.where(visible, 0.0, MASKED)
    if config.alibi_rounded_scale is not None:
        bias = torch.tensor(rounded_alibi(config, len(key_pos)), device=input_pos.device)
        return torch.where(visible, bias[:, None, :], MASKED)
    slopes = torch.tensor(config.alibi_slopes, dtype=torch.float32, device=input_pos.device)
    distance = input_pos[:, None] - key_pos[None, :]
    bias = slopes[:, None, None] * -distance.to(torch.float32)
    return torch.where(visible, bias, MASKED)


def rounded_alibi(config: MaskConfig, positions: int) -> list[list[float]]:
    """What is added to the scores of the keys at positions 0, 1, ...: [N, positions], in numbers that bfloat16 can hold, times a scale."""
    assert config.alibi_slopes is not None and config.alibi_rounded_scale is not None and config.window is None
    slopes, keys = (_bfloat16(np.array(values, np.float32)) for values in (config.alibi_slopes, np.arange(positions)))
    bias: list[list[float]] = (_bfloat16(slopes[:, None] * keys) * np.float32(config.alibi_rounded_scale)).tolist()
    return bias


def _bfloat16(values: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Rounded to the nearest number of 8 significant bits, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def per_group(mask: Tensor, config: AttentionConfig) -> Tensor:
    """A mask [T, S], [N, T, S] or [B, 1 or N, T, S] in the shape of the scores [B, K, N/K, T, S], as far as it differs."""
    if mask.dim() == 2:
        return mask
    *batch, heads, tokens, slots = mask.shape
    kv_heads = 1 if heads == 1 else config.num_kv_heads
    return mask.reshape(*batch, kv_heads, heads // kv_heads, tokens, slots)
