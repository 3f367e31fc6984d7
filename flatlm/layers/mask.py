"""Attention masks, additive."""

import torch
from torch import Tensor

from flatlm.layers.config import AttentionConfig, MaskConfig

MASKED = -1e9
"""Added to a score that must not count: its softmax is exactly zero in float32, and it cannot overflow."""


def attention_mask(config: MaskConfig, input_pos: Tensor, key_pos: Tensor) -> Tensor:
    """What a token at input_pos [T] may see of the slots that hold the positions key_pos [S]: 0, or a bias, where it may, else MASKED.

    [T, S] float32; with ALiBi [N, T, S]. A negative position is an empty slot of a ring, as only layers with a window have.
    """
    visible = key_pos[None, :] <= input_pos[:, None]
    if config.window is not None:
        visible = visible & (key_pos[None, :] > input_pos[:, None] - config.window) & (key_pos >= 0)[None, :]
    if config.alibi_slopes is None:
        return torch.where(visible, 0.0, MASKED)
    slopes = torch.tensor(config.alibi_slopes, dtype=torch.float32, device=input_pos.device)
    distance = input_pos[:, None] - key_pos[None, :]
    bias = slopes[:, None, None] * -distance.to(torch.float32)
    return torch.where(visible, bias, MASKED)


def per_group(mask: Tensor, config: AttentionConfig) -> Tensor:
    """A mask in the shape of the scores [B, K, N/K, T, S], as far as it differs."""
    return mask if mask.dim() == 2 else mask.reshape(config.num_kv_heads, -1, *mask.shape[1:])
