"""The encoder: tables, blocks that see the whole text, and a head (Devlin et al. 2019)."""

import torch
import torch.nn.functional as F  # the field's own name for it
from torch import Tensor, nn

from flatlm.layers import ops
from flatlm.layers.attention import StepContext
from flatlm.layers.block import Block
from flatlm.layers.config import MASKED
from flatlm.layers.encoder_config import (
    EmbeddingHead,
    EncoderConfig,
    Head,
    HiddenStates,
    LearnedPositions,
    MaskedLMHead,
    PoolerConfig,
    Pooling,
    SequenceHead,
    TokenHead,
)
from flatlm.layers.feed_forward import activate
from flatlm.layers.kv_cache import Uncached
from flatlm.layers.linear import Embedding, Linear
from flatlm.layers.norm import Norm

Outputs = dict[str, Tensor]
SHORTEST = 1e-12
"""Divides a vector of no length in the place of its length."""


class Encoder(nn.Module):
    """A model of whole texts. Its parts are what an export compiles: `prologue`, each block, `epilogue`. Parameters are left unset."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        narrow, width = config.embedding_dim, config.width
        self.embedding = Embedding(config.vocab_size, narrow)
        self.position_embedding = Embedding(config.positions.rows, narrow)
        self.token_type_embedding = Embedding(config.token_types, narrow) if config.token_types else None
        self.embedding_norm = Norm(config.embedding_norm, narrow)
        self.embedding_projection = Linear(narrow, width, bias=True) if config.projected else None
        self.blocks = nn.ModuleList(Block(width, block) for block in config.blocks)
        self.head = _head(config.head, config)
        if isinstance(config.head, MaskedLMHead):
            self.lm_head = Linear(narrow, config.vocab_size, bias=True)
            self.lm_head.tied_to = "embedding" if config.head.tied else None
        self.tie()
        ops.name_layers(self)
        for block in self.blocks:  # equal blocks are compiled once: the exporter puts the indices in
            ops.name_layers(block, "blocks.{}")

    def tie(self) -> None:
        """Let the decoder have the embedding's weight, where it is tied."""
        if self.config.tied_head:
            self.lm_head.weight = self.embedding.weight

    def prologue(self, tokens: Tensor, mask: Tensor, token_types: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens, and the types of those of a model that has types, [B, T] int32; mask [B, T], 1 for a real token and 0 for padding.

        Gives what the first layer reads, x [B, T, D], and what is added to scores, [B, 1, 1, T].
        """
        x: Tensor = self.embedding(tokens) + self.position_embedding(_rows(self.config.positions, tokens))
        if self.token_type_embedding is not None:
            x = x + self.token_type_embedding(torch.zeros_like(tokens) if token_types is None else token_types)
        x = self.embedding_norm(x)
        if self.embedding_projection is not None:
            x = self.embedding_projection(x)
        return x, ((1.0 - mask) * MASKED)[:, None, None, :]

    def epilogue(self, x: Tensor, mask: Tensor) -> Outputs:
        """From the last layer's x [B, T, D] to the head's outputs, by name."""
        if isinstance(self.config.head, MaskedLMHead):
            return {"logits": self.lm_head(self.head(x))}
        if isinstance(self.config.head, EmbeddingHead):
            return {"embedding": embed(x, mask, self.config.head)}
        if isinstance(self.config.head, HiddenStates):
            return {"hidden_states": x} | ({} if self.config.head.pooler is None else {"pooled": self.head(x)})
        return {"logits": self.head(x)}

    def forward(self, tokens: Tensor, mask: Tensor | None = None, token_types: Tensor | None = None) -> Outputs:
        """The head's outputs for tokens [B, T] int32. `mask`: [B, T], None where all are real; `token_types`: None where all are 0."""
        mask = torch.ones(tokens.shape) if mask is None else mask.to(torch.float32)
        x, scores_mask = self.prologue(tokens, mask, token_types)
        for index in self.config.layers:
            x, _ = self.blocks[index](x, StepContext(None, scores_mask, None), Uncached())
        return self.epilogue(x, mask)


class Dense(nn.Module):
    """x [..., in] -> [..., out]: activation(dense(x)), normalised where the head has a norm."""

    def __init__(self, in_features: int, out_features: int, head: MaskedLMHead | TokenHead | PoolerConfig) -> None:
        super().__init__()
        assert head.activation is not None
        self.activation = head.activation
        self.dense = Linear(in_features, out_features, bias=True)
        self.dense_norm = Norm(head.norm, out_features) if isinstance(head, MaskedLMHead) else None

    def forward(self, x: Tensor) -> Tensor:
        x = activate(self.dense(x), self.activation)
        return x if self.dense_norm is None else self.dense_norm(x)


class Pooler(Dense):
    """x [B, T, D] -> [B, D], from each text's first token."""

    def __init__(self, width: int, config: PoolerConfig) -> None:
        super().__init__(width, width, config)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, 0])


class Classifier(nn.Module):
    """x [B, T, D] -> logits [B, C] of texts or [B, T, C] of tokens."""

    def __init__(self, width: int, config: SequenceHead | TokenHead) -> None:
        super().__init__()
        if isinstance(config, SequenceHead):
            self.transform: nn.Module | None = Pooler(width, config.pooler)
        elif config.activation is not None:
            self.transform = Dense(width, width, config)
        else:
            self.transform = None
        self.output = Linear(width, config.labels, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(x if self.transform is None else self.transform(x))  # type: ignore[no-any-return]


def _head(head: Head, config: EncoderConfig) -> nn.Module:
    """What lies between the blocks and the outputs, but for a masked language model's decoder."""
    match head:
        case MaskedLMHead():
            return Dense(config.width, config.embedding_dim, head)
        case SequenceHead() | TokenHead():
            return Classifier(config.width, head)
        case HiddenStates(PoolerConfig() as pooler):
            return Pooler(config.width, pooler)
    return nn.Identity()


def _rows(positions: LearnedPositions, tokens: Tensor) -> Tensor:
    """Which row of the positions' table each token adds, [T] or [B, T] int32."""
    if positions.padding_id is None:
        return torch.arange(tokens.shape[1], dtype=torch.int32, device=tokens.device)
    real = (tokens != positions.padding_id).to(torch.int32)
    return torch.cumsum(real, 1, dtype=torch.int32) * real + positions.padding_id


def embed(x: Tensor, mask: Tensor, head: EmbeddingHead) -> Tensor:
    """One vector [B, D] for each text, from hidden states x [B, T, D] and its mask [B, T]."""
    match head.pooling:
        case Pooling.MEAN:
            pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1e-9)
        case Pooling.MAX:
            pooled = (x + (1.0 - mask[..., None]) * MASKED).amax(1)
        case Pooling.CLS:
            pooled = x[:, 0]
    return F.normalize(pooled, dim=-1, eps=SHORTEST) if head.normalised else pooled


def build_on_meta(config: EncoderConfig) -> Encoder:
    """The model without any weight's memory."""
    with torch.device("meta"):
        return Encoder(config).eval()
