"""The decoder-only model: embedding, blocks, final norm, head."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flatlm.layers import ops
from flatlm.layers.attention import StepContext
from flatlm.layers.block import Block
from flatlm.layers.config import AttentionConfig, MaskConfig, ModelConfig
from flatlm.layers.infilling import Places
from flatlm.layers.kv_cache import Cache, CacheGeometry, Placement, empty_caches, place, positions_held
from flatlm.layers.linear import Embedding, Linear
from flatlm.layers.mask import attention_mask
from flatlm.layers.mixture import Mixture
from flatlm.layers.norm import Norm
from flatlm.layers.rope import rope_tables


class MaskKind(NamedTuple):
    """What decides a layer's mask: what it may see, and how many slots its cache has."""

    mask: MaskConfig
    slots: int


class StepContexts(NamedTuple):
    """What the prologue computes once for all blocks of a step: one of each kind that occurs in the model."""

    ropes: tuple[tuple[Tensor, Tensor], ...]
    masks: tuple[Tensor, ...]
    places: tuple[Placement, ...]


class Decoder(nn.Module):
    """A language model over static shapes. Its three parts are what an export compiles: `prologue`, each block, `epilogue`."""

    def __init__(self, config: ModelConfig, geometry: CacheGeometry) -> None:
        """`geometry`: the context's length, at most as many positions as the model knows. Parameters are left unset."""
        super().__init__()
        self.config = config
        self.geometry = geometry
        dim = config.embedding_dim
        self.embedding = Embedding(config.vocab_size, dim)
        self.position_embedding = None if config.position_embedding is None else Embedding(config.position_embedding.rows, dim)
        blocks = config.block_position_embedding
        self.block_position_embedding = None if blocks is None else Embedding(blocks.rows, dim)
        self.blocks = nn.ModuleList(Block(dim, block) for block in config.blocks)
        self.final_norm = Norm(config.final_norm, dim)
        self.lm_head = Linear(dim, config.vocab_size, bias=config.head_bias)
        if config.tied_head:
            self.lm_head.tied_to = "embedding"
        self.tie()
        ops.name_layers(self)
        for block in self.blocks:  # equal blocks, and all experts of one, are compiled once: the exporter puts the indices in
            ops.name_layers(block, "blocks.{}")
            for expert in block.feed_forward.experts if isinstance(block.feed_forward, Mixture) else ():
                ops.name_layers(expert, "blocks.{}.feed_forward.experts.{expert}")
        self._tables = [rope_tables(rope, geometry.positions) for rope in config.ropes]
        self.kinds = ContextKinds(config, geometry)

    def tie(self) -> None:
        """Let a tied head be the embedding again, after weights were put in."""
        if self.config.tied_head:
            self.lm_head.weight = self.embedding.weight

    def prologue(self, tokens: Tensor, input_pos: Tensor, places: Places | None = None) -> tuple[Tensor, StepContexts]:
        """Tokens [B, T] int32 at consecutive positions input_pos [T] int32 -> x [B, T, D], and what the blocks need.

        `places`: of a model that fills blanks; None reads on from left to right, as text without a blank.
        """
        return self.embed(tokens, input_pos, places), self.contexts(input_pos, places)

    def embed(self, tokens: Tensor, input_pos: Tensor, places: Places | None = None) -> Tensor:
        """What the first block reads, [B, T, D]."""
        x: Tensor = self.embedding(tokens)
        if self.config.embedding_scale != 1.0:
            x = x * self.config.embedding_scale
        if self.position_embedding is not None and self.config.position_embedding is not None:
            rows = input_pos if places is None else places.position_ids[0]
            x = x + self.position_embedding(rows + self.config.position_embedding.offset)
        if self.block_position_embedding is not None:
            x = x + self.block_position_embedding(torch.zeros_like(input_pos) if places is None else places.position_ids[1])
        return x

    def contexts(self, input_pos: Tensor, places: Places | None = None) -> StepContexts:
        """What the blocks need of a step at the positions input_pos [T]; no weight is read for it."""
        length = self.geometry.length
        ropes = tuple((_at(cos, input_pos), _at(sin, input_pos)) for cos, sin in self._tables)
        held = {slots: positions_held(input_pos, slots, length) for slots in self.kinds.slots}
        prefix = None if places is None else places.prefix
        masks = tuple(attention_mask(kind.mask, input_pos, held[kind.slots], prefix) for kind in self.kinds.masks)
        return StepContexts(ropes, masks, tuple(place(input_pos, slots, length) for slots in self.kinds.slots))

    def epilogue(self, x: Tensor) -> Tensor:
        """From x [B, T, D] to logits [B, T, V]."""
        return final_logits(self.lm_head(self.final_norm(x)), self.config)

    def forward(
        self, tokens: Tensor, input_pos: Tensor, caches: Sequence[Cache] | None = None, places: Places | None = None
    ) -> tuple[Tensor, list[Cache]]:
        """Logits [B, T, V] and the updated caches for tokens [B, T] int32 at consecutive positions input_pos [T] int32.

        `caches`: None is empty ones for one text (B = 1), as at its beginning. `places`: as `prologue` takes them.
        """
        caches = empty_caches(self.config, self.geometry) if caches is None else caches
        x, contexts = self.prologue(tokens, input_pos, places)
        updated = []
        for block, attention, cache in zip(self.blocks, (block.attention for block in self.config.blocks), caches, strict=True):
            x, cache = block(x, self.kinds.context(contexts, attention), cache)
            updated.append(cache)
        return self.epilogue(x), updated


class ContextKinds:
    """Which ropes, masks and cache lengths occur in a model, and which of them a layer has."""

    def __init__(self, config: ModelConfig, geometry: CacheGeometry) -> None:
        attentions = [block.attention for block in config.blocks]
        self.geometry = geometry
        self.ropes = config.ropes
        self.masks = tuple(dict.fromkeys(self._mask(attention) for attention in attentions))
        self.slots = tuple(dict.fromkeys(geometry.slots(attention) for attention in attentions))

    def rope_index(self, attention: AttentionConfig) -> int | None:
        return None if attention.rope is None else self.ropes.index(attention.rope)

    def mask_index(self, attention: AttentionConfig) -> int:
        return self.masks.index(self._mask(attention))

    def place_index(self, attention: AttentionConfig) -> int:
        return self.slots.index(self.geometry.slots(attention))

    def context(self, contexts: StepContexts, attention: AttentionConfig) -> StepContext:
        """The layer's own."""
        rope = self.rope_index(attention)
        return StepContext(
            None if rope is None else contexts.ropes[rope],
            contexts.masks[self.mask_index(attention)],
            contexts.places[self.place_index(attention)],
        )

    def _mask(self, attention: AttentionConfig) -> MaskKind:
        return MaskKind(attention.mask, self.geometry.slots(attention))


def _at(table: Tensor, input_pos: Tensor) -> Tensor:
    """Rows of a rope table [S, H] at the positions [T], as [T, 1, H]: the same for all heads."""
    return ops.take(table, input_pos, 0)[:, None, :]


def build_on_meta(config: ModelConfig, geometry: CacheGeometry) -> Decoder:
    """The model without any weight's memory; only the rope tables are real."""
    with torch.device("meta"):
        return Decoder(config, geometry).eval()


def final_logits(products: Tensor, config: ModelConfig) -> Tensor:
    """Logits [..., V] from what the head's matrix gives: scaled, then bounded softly."""
    if config.logit_scale != 1.0:
        products = products * config.logit_scale
    cap = config.logit_softcap
    return products if cap is None else torch.tanh(products * (1 / cap)) * cap
