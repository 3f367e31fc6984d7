"""The decoder-only model: embedding, blocks, final norm, head."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flatlm.layers import ops
from flatlm.layers.block import Block
from flatlm.layers.config import ModelConfig
from flatlm.layers.kv_cache import CacheSlots, KVCache
from flatlm.layers.linear import Embedding, Linear
from flatlm.layers.mask import causal_mask
from flatlm.layers.norm import Norm
from flatlm.layers.rope import rope_tables


class StepContext(NamedTuple):
    """What the prologue computes once for all blocks of a step."""

    ropes: tuple[tuple[Tensor, Tensor], ...]
    """Cosines and signed sines [T, 1, H] for each of the config's rotary embeddings."""
    mask: Tensor
    """[T, S], additive."""
    slots: CacheSlots


class Decoder(nn.Module):
    """A language model over static shapes. Its three parts are what an export compiles: `prologue`, each block, `epilogue`."""

    def __init__(self, config: ModelConfig, *, cache_length: int) -> None:
        """`cache_length`: S, the number of KV slots, at most as many positions as the model knows. Parameters are left unset."""
        super().__init__()
        self.config = config
        self.cache_length = cache_length
        self.embedding = Embedding(config.vocab_size, config.embedding_dim)
        self.blocks = nn.ModuleList(Block(config.embedding_dim, block) for block in config.blocks)
        self.final_norm = Norm(config.embedding_dim, config.final_norm)
        self.lm_head = Linear(config.embedding_dim, config.vocab_size, bias=config.head_bias)
        if config.tied_head:
            self.lm_head.weight = self.embedding.weight
            self.lm_head.tied_to = "embedding"
        ops.name_layers(self)
        for block in self.blocks:
            ops.name_layers(block, "blocks.{}")  # equal blocks are compiled once: the exporter puts the index in
        self._tables = [rope_tables(rope, cache_length) for rope in config.ropes]

    def rope_index(self, layer: int) -> int:
        """Which of the config's rotary embeddings the layer turns by."""
        return self.config.ropes.index(self.config.blocks[layer].attention.rope)

    def prologue(self, tokens: Tensor, input_pos: Tensor) -> tuple[Tensor, "StepContext"]:
        """Tokens [B, T] int32 at consecutive positions input_pos [T] int32 -> x [B, T, D], and what every block needs."""
        ropes = tuple((_at(cos, input_pos), _at(sin, input_pos)) for cos, sin in self._tables)
        return self.embedding(tokens), StepContext(ropes, causal_mask(input_pos, self.cache_length), CacheSlots.at(input_pos))

    def epilogue(self, x: Tensor) -> Tensor:
        """From x [B, T, D] to logits [B, T, V]."""
        return self.lm_head(self.final_norm(x))  # type: ignore[no-any-return]

    def forward(self, tokens: Tensor, input_pos: Tensor, caches: Sequence[KVCache]) -> tuple[Tensor, list[KVCache]]:
        """Logits [B, T, V] and the updated caches for tokens [B, T] int32 at consecutive positions input_pos [T] int32."""
        x, context = self.prologue(tokens, input_pos)
        updated = []
        for layer, (block, cache) in enumerate(zip(self.blocks, caches, strict=True)):
            x, cache = block(x, context.ropes[self.rope_index(layer)], context.mask, context.slots, cache)
            updated.append(cache)
        return self.epilogue(x), updated


def _at(table: Tensor, input_pos: Tensor) -> Tensor:
    """Rows of a rope table [S, H] at the positions [T], as [T, 1, H]: the same for all heads."""
    return ops.take_rows(table, input_pos)[:, None, :]


def build_on_meta(config: ModelConfig, *, cache_length: int) -> Decoder:
    """The model without any weight's memory; only the rope tables are real."""
    with torch.device("meta"):
        return Decoder(config, cache_length=cache_length).eval()
