"""Rotation of the residual stream, folded into the weights: the model computes what it did, on channels without outliers.

With R orthogonal, x R in the place of x: what reads the stream gets W diag(g) R, where g is the weight of the norm before it (which
becomes 1, since the root mean square of x R is that of x); what writes to it gets R^T W, and its bias b R; the embeddings E R.
QuaRot, Ashkboos et al. 2024 (section 3); SliceGPT, Ashkboos et al. 2024 (equation 2).
"""

import threading
from collections.abc import Mapping

import torch
from torch import Tensor

from flatlm.convert.in_memory import InMemory
from flatlm.convert.weights import WeightSource
from flatlm.layers.config import BlockConfig, MixtureConfig, ModelConfig, NormConfig, NormKind
from flatlm.quantize.rotation import random_hadamard
from flatlm.utilities.calibration.sources import Changed, read_whole


def obstacle(config: ModelConfig) -> str | None:
    """Why a model cannot be rotated; None where it can."""
    if config.tied_head:
        return "its head is tied to the embedding, and would need weights of its own"
    norms: list[NormConfig | None] = [config.final_norm]
    for block in config.blocks:
        if block.attention_post_norm is not None or block.feed_forward_post_norm is not None:
            return "a norm stands between its blocks' branches and the residual stream"
        norms += [block.attention_norm, *([] if block.parallel and block.feed_forward_norm is None else [block.feed_forward_norm])]
    if any(norm is None for norm in norms):
        return "a branch reads the residual stream without a norm"
    if any(norm is not None and (norm.kind is not NormKind.RMS or norm.bias) for norm in norms):
        return "its norms are not root mean squares, so that they do not turn with the channels"
    return None


def rotate(config: ModelConfig, sources: Mapping[str, WeightSource], seed: int = 0) -> dict[str, WeightSource]:
    """The same model with its residual stream turned, for a configuration that has no `obstacle`."""
    matrix = random_hadamard(config.embedding_dim, seed)
    turned = dict(sources)

    def read(name: str, norm: str) -> None:
        gain = read_whole(sources[norm]) if norm in sources else torch.ones(config.embedding_dim)
        turned[name] = Changed(sources[name], lambda rows, start: (rows * gain) @ matrix)
        if norm in sources:
            turned[norm] = InMemory(torch.ones_like(gain), sources[norm].origin(0))

    def write(name: str) -> None:
        turned[f"{name}.weight"] = _Turned(sources[f"{name}.weight"], matrix)
        if f"{name}.bias" in sources:
            turned[f"{name}.bias"] = InMemory(read_whole(sources[f"{name}.bias"]) @ matrix, sources[f"{name}.bias"].origin(0))

    for table in ("embedding.weight", "position_embedding.weight"):
        if table in sources:
            turned[table] = Changed(sources[table], lambda rows, start: rows @ matrix)
    for layer, block in enumerate(config.blocks):
        prefix = f"blocks.{layer}"
        first, second, down = _projections(block)
        norm = f"{prefix}.attention_norm.weight"
        read(f"{prefix}.attention.qkv.weight", norm)
        after = norm if block.feed_forward_norm is None else f"{prefix}.feed_forward_norm.weight"
        for name in first:
            read(f"{prefix}.{name}.weight", after)
        for name in (second, *down):
            write(f"{prefix}.{name}")
    read("lm_head.weight", "final_norm.weight")
    return turned


def _projections(block: BlockConfig) -> tuple[list[str], str, list[str]]:
    """What reads the stream in the feed-forward, and what writes to it: of the attention, of the feed-forward."""
    if isinstance(block.feed_forward, MixtureConfig):
        experts = [f"feed_forward.experts.{expert}" for expert in range(block.feed_forward.num_experts)]
        up = "gate_up" if block.feed_forward.expert.gated else "up"
        reads = ["feed_forward.router", *(f"{expert}.{up}" for expert in experts)]
        return reads, "attention.output", [f"{expert}.down" for expert in experts]
    up = "gate_up" if block.feed_forward.gated else "up"
    return [f"feed_forward.{up}"], "attention.output", ["feed_forward.down"]


class _Turned:
    """R^T W of a weight [D, C]: each row is made of all. The product is made once, and let go when all its rows have been taken."""

    def __init__(self, source: WeightSource, matrix: Tensor) -> None:
        self.source, self.matrix = source, matrix
        self._lock = threading.Lock()
        self._whole: Tensor | None = None
        self._left = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def rows(self, start: int, stop: int) -> Tensor:
        with self._lock:
            if self._whole is None:
                self._whole, self._left = self.matrix.T @ read_whole(self.source), self.shape[0]
            whole = self._whole
            self._left -= stop - start
            if self._left <= 0:
                self._whole = None
        return whole[start:stop]

    def origin(self, row: int) -> str:
        return self.source.origin(row)
