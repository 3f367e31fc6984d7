"""Attention masks, additive."""

import torch
from torch import Tensor

MASKED = -1e9
"""Added to a score that must not count: its softmax is exactly zero in float32, and it cannot overflow."""


def causal_mask(input_pos: Tensor, slots: int) -> Tensor:
    """[T, S] float32: 0 where a token at input_pos [T] may see cache slot s (s <= position), else MASKED."""
    visible = torch.arange(slots, dtype=torch.int32, device=input_pos.device)[None, :] <= input_pos[:, None]
    return torch.where(visible, 0.0, MASKED)
