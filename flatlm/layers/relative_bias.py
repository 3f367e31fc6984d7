"""Biases of scores by relative position, as T5 has them (Raffel et al. 2020, section 2.1; mesh_tensorflow's transformer_layers.py)."""

import math

import torch
from torch import Tensor, nn

from flatlm.layers import ops
from flatlm.layers.encoder_decoder_config import RelativeBiasConfig


class Bias(ops.Named):
    """A parameter `bias` of any shape that is added as it is, in float32 by every recipe."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(shape))

    def forward(self, like: Tensor) -> Tensor:
        """The parameter. `like`: any tensor that is computed from the model's input."""
        return ops.parameter(like, f"{self.path}.bias", list(self.bias.shape)) if ops.is_exporting() else self.bias


class RelativeBias(Bias):
    """The table [buckets, N] of a stack, and what it adds to scores, in texts of up to `longest` tokens."""

    def __init__(self, config: RelativeBiasConfig, heads: int, longest: int) -> None:
        super().__init__(config.buckets, heads)
        self.longest = longest
        # Not part of any graph: a runtime's logarithm may differ in its last bit, and so put an offset on a range's edge elsewhere.
        self._buckets = bucket(config, torch.arange(-(longest - 1), longest + 1, device="cpu")).to(torch.int32)

    def between_all(self, mask: Tensor) -> Tensor:
        """Of each of T tokens for each: [N, T, T]. `mask` [B, T] float32 says how many, and its values do not matter."""
        length = mask.shape[1]
        # Offsets -(T - 1) to T - 1, and one more: T copies side by side, cut into rows that are one shorter, move by one from row to row.
        rows = self._rows(mask, self.longest - length, self.longest + length).T[:, None, :]
        copies = rows.expand(rows.shape[0], length, 2 * length).reshape(rows.shape[0], -1)
        return copies[:, : length * (2 * length - 1)].reshape(-1, length, 2 * length - 1)[:, :, length - 1 :]

    def before(self, input_pos: Tensor, slots: int) -> Tensor:
        """Of the positions 0 to S - 1 for tokens at input_pos [T] int32: [N, T, S]. Of positions behind a token it may be anything."""
        offset = torch.arange(slots, dtype=torch.int32, device=input_pos.device)[None, :] - input_pos[:, None]
        at = offset.clamp(1 - slots, 0) + (slots - 1)
        rows = self._rows(input_pos.to(torch.float32), self.longest - slots, self.longest)
        return ops.take(rows, at.reshape(-1), 0).T.reshape(-1, len(input_pos), slots)

    def _rows(self, like: Tensor, start: int, stop: int) -> Tensor:
        """The table's rows for the offsets from `start` - longest + 1 on: [stop - start, N]."""
        return ops.take(self(like), self._buckets[start:stop].to(like.device), 0)


def bucket(config: RelativeBiasConfig, offsets: Tensor) -> Tensor:
    """The bucket of each offset, the key's position less the query's; int64, of the same shape.

    Logarithms are taken in float32, as the models were trained: which bucket an offset on a range's edge is in depends on it.
    """
    count, first = config.buckets, torch.zeros_like(offsets)
    if config.bidirectional:
        count //= 2
        first, distance = (offsets > 0).to(torch.int64) * count, offsets.abs()
    else:
        distance = -offsets.clamp(max=0)
    exact = count // 2
    share = torch.log(distance.clamp(min=1).to(torch.float32) / exact) / math.log(config.max_distance / exact)
    far = (exact + (share * (count - exact)).to(torch.int64)).clamp(max=count - 1)
    return first + torch.where(distance < exact, distance, far)
