"""The encoder with a decoder: a text is read as a whole, once; then another is written, token by token, that looks at it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # the field's own name for it
from torch import Tensor, nn

from flatlm.layers import ops
from flatlm.layers.attention import StepContext
from flatlm.layers.block import Block
from flatlm.layers.config import MASKED
from flatlm.layers.cross_attention import CrossBlock
from flatlm.layers.encoder_decoder_config import EncoderDecoderConfig, StackConfig
from flatlm.layers.kv_cache import Cache, CacheGeometry, KVCache, Uncached, empty_cache, place
from flatlm.layers.linear import Embedding, Linear
from flatlm.layers.mask import attention_mask
from flatlm.layers.norm import norm_or_none
from flatlm.layers.relative_bias import Bias, RelativeBias


class TwoLengths(NamedTuple):
    """For how many tokens a model is built: `encoder` slots, which is the longest text that is read, and the decoder's caches."""

    encoder: int
    decoder: CacheGeometry


class Stack(nn.Module):
    """The blocks of one side and what lies around them."""

    def __init__(self, config: StackConfig, dim: int, blocks: Sequence[Block], length: int) -> None:
        super().__init__()
        self.config = config
        self.position_embedding = None if config.position_embedding is None else Embedding(config.position_embedding.rows, dim)
        self.embedding_norm = norm_or_none(config.embedding_norm, dim)
        heads = config.blocks[0].attention.num_query_heads
        self.relative = None if config.relative_bias is None else RelativeBias(config.relative_bias, heads, length)
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = norm_or_none(config.final_norm, dim)

    def begin(self, x: Tensor, positions: Tensor) -> Tensor:
        """What the first block reads, of scaled embeddings x [B, T, D] at positions [T] int32."""
        if self.position_embedding is not None and self.config.position_embedding is not None:
            x = x + self.position_embedding(positions + self.config.position_embedding.offset)
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def end(self, x: Tensor) -> Tensor:
        """What the last block gave, after the final norm."""
        return x if self.final_norm is None else self.final_norm(x)


class EncoderDecoder(nn.Module):
    """Over static shapes. `encode` and `decode` are what runs; an export compiles their parts."""

    def __init__(self, config: EncoderDecoderConfig, lengths: TwoLengths) -> None:
        """Parameters are left unset."""
        super().__init__()
        self.config = config
        self.lengths = lengths
        dim = config.embedding_dim
        self.embedding = Embedding(config.vocab_size, dim)
        self.encoder_embedding = None if config.shared_embedding else Embedding(config.vocab_size, dim)
        self.encoder = Stack(config.encoder, dim, [Block(dim, block) for block in config.encoder.blocks], lengths.encoder)
        blocks = [CrossBlock(dim, block, config.cross, config.cross_norm) for block in config.decoder.blocks]
        self.decoder = Stack(config.decoder, dim, blocks, lengths.decoder.length)
        self.lm_head = Linear(dim, config.vocab_size)
        self.logits = Bias(1, config.vocab_size) if config.logits_bias else None
        if config.tied_head:
            self.lm_head.tied_to = "embedding"
        self.tie()
        ops.name_layers(self)
        for side in ("encoder", "decoder"):
            for block in getattr(self, side).blocks:  # equal blocks are compiled once: the exporter puts the indices in
                ops.name_layers(block, f"{side}.blocks.{{}}")

    def tie(self) -> None:
        """Let a tied head be the embedding again, after weights were put in."""
        if self.config.tied_head:
            self.lm_head.weight = self.embedding.weight

    def encoder_prologue(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens [B, T] int32 and mask [B, T] float32 (1: a token, 0: padding) x [B, T, D] and the additive mask: [B, 1, 1, T], or by
        relative positions [B, N, T, T].
        """
        table = self.embedding if self.encoder_embedding is None else self.encoder_embedding
        positions = torch.arange(tokens.shape[1], dtype=torch.int32, device=tokens.device)
        added = self.hidden(mask)
        if self.encoder.relative is not None:
            added = added + self.encoder.relative.between_all(mask)
        return self.encoder.begin(self._scaled(table(tokens)), positions), added

    def encode(self, tokens: Tensor, mask: Tensor) -> list[KVCache]:
        """Read texts, tokens [B, T] int32 with mask [B, T] float32: each decoder layer's keys and values, of S_e slots."""
        x, added = self.encoder_prologue(tokens, mask)
        for block in self.encoder.blocks:
            x, _ = block(x, StepContext(None, added, None), Uncached())
        encoded = self.encoder.end(x)
        return [self.cross(block, encoded) for block in self.decoder.blocks]

    def cross(self, block: nn.Module, encoded: Tensor) -> KVCache:
        """A decoder block's keys [B, K, S_e, H] and values [B, K, H, S_e] of the encoder's output [B, T, D]; zeros in slots after T."""
        assert isinstance(block, CrossBlock)
        k, v = block.cross.attention.hold(encoded)
        empty = self.lengths.encoder - encoded.shape[1]
        return KVCache(F.pad(k, (0, 0, 0, empty)), F.pad(v, (0, empty))) if empty else KVCache(k, v)

    def decoder_prologue(self, tokens: Tensor, input_pos: Tensor) -> tuple[Tensor, Tensor]:
        """Of tokens [B, T] int32 at consecutive positions input_pos [T] int32 x [B, T, D] and the additive mask [T, S] or [N, T, S]."""
        slots = self.lengths.decoder.length
        mask = attention_mask(self.config.decoder.blocks[0].attention.mask, input_pos, torch.arange(slots, dtype=torch.int32))
        if self.decoder.relative is not None:
            mask = mask + self.decoder.relative.before(input_pos, slots)
        return self.decoder.begin(self._scaled(self.embedding(tokens)), input_pos), mask

    def hidden(self, mask: Tensor) -> Tensor:
        """What is added to the scores of keys: [B, 1, 1, S] of a mask [B, S], 0 for tokens, MASKED for padding."""
        return ((1.0 - mask) * MASKED)[:, None, None, :]

    def epilogue(self, x: Tensor) -> Tensor:
        """From x [B, T, D] to logits [B, T, V]."""
        x = self.decoder.end(x)
        x = x if self.config.head_scale == 1.0 else x * self.config.head_scale
        logits: Tensor = self.lm_head(x)
        return logits if self.logits is None else logits + self.logits(x)

    def decode(
        self, tokens: Tensor, input_pos: Tensor, encoder_mask: Tensor, cross: Sequence[KVCache], caches: Sequence[Cache]
    ) -> tuple[Tensor, list[Cache]]:
        """Logits [B, T, V] and the updated caches, for tokens [B, T] int32 at consecutive positions input_pos [T] int32.

        `encoder_mask` [B, S_e] float32: which slots of `cross`, which is what `encode` gave, hold a token.
        """
        x, mask = self.decoder_prologue(tokens, input_pos)
        context = StepContext(None, mask, place(input_pos, self.lengths.decoder.length, self.lengths.decoder.length))
        hidden, updated = self.hidden(encoder_mask), []
        for block, held, cache in zip(self.decoder.blocks, cross, caches, strict=True):
            assert isinstance(block, CrossBlock)
            x, cache = block.decode(x, context, cache, (held, hidden))
            updated.append(cache)
        return self.epilogue(x), updated

    def forward(self, tokens: Tensor, mask: Tensor, decoder_tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of texts written [B, T] after texts read [B, T_e], from their beginnings, in one go."""
        caches = self.empty_caches(batch=tokens.shape[0])
        encoder_mask = F.pad(mask, (0, self.lengths.encoder - mask.shape[1]))
        positions = torch.arange(decoder_tokens.shape[1], dtype=torch.int32, device=tokens.device)
        return self.decode(decoder_tokens, positions, encoder_mask, self.encode(tokens, mask), caches)[0]

    def empty_caches(self, *, batch: int = 1, device: torch.device | str | None = None) -> list[Cache]:
        """Zeroed, for every layer of the decoder."""
        blocks = self.config.decoder.blocks
        return [empty_cache(block.attention, self.lengths.decoder, batch=batch, device=device) for block in blocks]

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.config.embedding_scale == 1.0 else x * self.config.embedding_scale


def build_on_meta(config: EncoderDecoderConfig, lengths: TwoLengths) -> EncoderDecoder:
    """The model without any weight's memory; only the buckets of relative positions are real."""
    with torch.device("meta"):
        return EncoderDecoder(config, lengths).eval()
