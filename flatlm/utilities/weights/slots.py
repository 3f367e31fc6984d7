"""Every parameter of a model, and the checkpoint tensors that it is made of: a configuration and a family's names, put together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flatlm.layers.config import AttentionConfig, BlockConfig, FeedForwardConfig, MixtureConfig, ModelConfig, NormConfig, NormKind, NormSpan
from flatlm.layers.rope import halves_order
from flatlm.utilities.weights.tensor_names import TensorNames

Indices = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Part:
    """Rows of a parameter that come from one checkpoint tensor.

    `shape` is the tensor's own, in the file. It is read as a matrix: slice `expert` of its first dimension, if given; transposed, if so;
    and then the rows `rows` of that, in their order (None: all of them). `offset` is added to the values.
    """

    tensor: str
    shape: tuple[int, ...]
    rows: Indices | None = field(default=None, compare=False)
    expert: int | None = None
    transposed: bool = False
    offset: float = 0.0

    @property
    def matrix(self) -> tuple[int, ...]:
        """The shape that `rows` picks from."""
        shape = self.shape if self.expert is None else self.shape[1:]
        return shape[::-1] if self.transposed else shape

    @property
    def taken(self) -> tuple[int, ...]:
        """The shape of what it gives."""
        return self.matrix if self.rows is None else (len(self.rows), *self.matrix[1:])


@dataclass(frozen=True)
class Slot:
    """A parameter of the model, and the parts whose rows, one below the other, make it up. `own_shape`: where each part is one row."""

    name: str
    parts: tuple[Part, ...]
    own_shape: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.own_shape or (sum(part.taken[0] for part in self.parts), *self.parts[0].taken[1:])


def model_slots(config: ModelConfig, names: TensorNames) -> Iterator[Slot]:
    """Every parameter of the model with its source tensors, in the model's order. Tied heads have no slot of their own."""
    width = config.embedding_dim
    yield Slot("embedding.weight", (Part(f"{names.embedding}.weight", (config.vocab_size, width)),))
    if config.position_embedding is not None:
        yield Slot("position_embedding.weight", (Part(f"{names.position_embedding}.weight", (config.position_embedding.rows, width)),))
    if (blocks := config.block_position_embedding) is not None:
        yield Slot("block_position_embedding.weight", (Part(f"{names.block_position_embedding}.weight", (blocks.rows, width)),))
    for layer, block in enumerate(config.blocks):
        yield from BlockSlots(block, names, layer, width, f"blocks.{layer}")
    yield from norm_slots("final_norm", names.final_norm, config.final_norm, width, names)
    head = Part(f"{names.lm_head}.weight", (config.vocab_size, width))
    if not config.tied_head:
        yield Slot("lm_head.weight", (head,))
    if config.head_bias:
        yield Slot("lm_head.bias", (Part(f"{names.lm_head}.bias", (config.vocab_size,)),))


@dataclass(frozen=True)
class Rows:
    """Some rows of a projection: of the tensor `source`, which has `stored` rows, those of `indices` (None: all)."""

    source: str
    stored: int
    indices: Indices | None = None


class BlockSlots:
    """One block's slots, in the order of its parameters: that of the checkpoint's layer `layer`, called `prefix` in the model."""

    def __init__(self, block: BlockConfig, names: TensorNames, layer: int, width: int, prefix: str) -> None:
        self.block, self.names, self.layer, self.width, self.prefix = block, names, layer, width, prefix

    def __iter__(self) -> Iterator[Slot]:
        block, width = self.block, self.width
        yield from self._norm("attention_norm", "pre_attn_norm", block.attention_norm, width)
        yield from self._attention(block.attention)
        yield from self._norm("attention_post_norm", "post_attn_norm", block.attention_post_norm, width)
        yield from self._norm("feed_forward_norm", "pre_ff_norm", block.feed_forward_norm, width)
        if isinstance(block.feed_forward, MixtureConfig):
            yield from self._mixture(block.feed_forward)
        else:
            yield from self._feed_forward("feed_forward", block.feed_forward)
        yield from self._norm("feed_forward_post_norm", "post_ff_norm", block.feed_forward_post_norm, width)

    def _name(self, field_name: str, *index: int) -> str:
        """The family's name for it, with the layer's index (and another) put in."""
        return str(getattr(self.names, field_name)).format(self.layer, *index)

    def _attention(self, config: AttentionConfig) -> Iterator[Slot]:
        width = config.head_dim
        queries, keys = config.num_query_heads * width, config.num_kv_heads * width
        order = None if config.rope is None else np.array(halves_order(config.rope, interleaved=self.names.interleaved_rope))
        if order is not None and (order == np.arange(width)).all():
            order = None
        yield from self._linear("attention.qkv", self._qkv(config, order), self.width, bias=config.qkv_bias)
        if config.qk_norm is not None and config.qk_norm.span is NormSpan.HEAD:
            yield from self._head_norms(config, order)
        elif config.qk_norm is not None:
            for name, field_name, rows in (("query_norm", "attn_query_norm", queries), ("key_norm", "attn_key_norm", keys)):
                parameter = f"{self.prefix}.attention.{name}"
                yield from norm_slots(
                    parameter, self._name(field_name), config.qk_norm.norm, rows, self.names, _each_head(rows // width, order)
                )
        yield from self._linear("attention.output", [Rows(self._name("attn_output_proj"), self.width)], queries, bias=config.output_bias)

    def _qkv(self, config: AttentionConfig, order: Indices | None) -> list[Rows]:
        """The rows of the merged projection [q | k | v], the entries of q's and k's heads in the model's order."""
        heads, kv_heads, width = config.num_query_heads, config.num_kv_heads, config.head_dim
        if self.names.attn_fused_qkv_proj is None:
            rows = []
            for field_name, count in (("attn_query_proj", heads), ("attn_key_proj", kv_heads), ("attn_value_proj", kv_heads)):
                own_order = None if field_name == "attn_value_proj" else _each_head(count, order)
                rows.append(Rows(self._name(field_name), count * width, own_order))
            return rows
        fused, total = self._name("attn_fused_qkv_proj"), (heads + 2 * kv_heads) * width
        where = np.arange(total).reshape(heads + 2 * kv_heads, width)
        if self.names.grouped_qkv:
            groups = where.reshape(kv_heads, -1, width)
            where = np.concatenate([part.reshape(-1, width) for part in (groups[:, :-2], groups[:, -2], groups[:, -1])])
        elif order is None:
            return [Rows(fused, total)]
        if order is not None:
            where[: heads + kv_heads] = where[: heads + kv_heads, order]
        return [Rows(fused, total, where.reshape(-1))]

    def _head_norms(self, config: AttentionConfig, order: Indices | None) -> Iterator[Slot]:
        """A norm's weights for every head [N + K, H]: one tensor for all query heads and one for all key heads, or one for each head."""
        assert config.qk_norm is not None
        heads = [("attn_query_norm", i) for i in range(config.num_query_heads)] + [("attn_key_norm", i) for i in range(config.num_kv_heads)]
        for kind in _parameters(config.qk_norm.norm):
            sources = [self._name(name, *([head] if self.names.head_norms_apart else [])) for name, head in heads]
            offset = _norm_offset(self.names, config.qk_norm.norm, kind)
            parts = tuple(Part(f"{source}.{kind}", (config.head_dim,), order, offset=offset) for source in sources)
            yield Slot(f"{self.prefix}.attention.query_key_norm.{kind}", parts, (len(heads), config.head_dim))

    def _feed_forward(self, name: str, config: FeedForwardConfig, expert: tuple[int, int] | None = None) -> Iterator[Slot]:
        """`expert`: its index, and of how many."""
        hidden, width = config.hidden_dim, self.width
        kind, index = ("ff", ()) if expert is None else ("expert", (expert[0],))
        up = Rows(self._name(f"{kind}_up_proj", *index), hidden)
        if config.gated and getattr(self.names, f"{kind}_fused_gate_up_proj") is not None:
            fused = [Rows(self._name(f"{kind}_fused_gate_up_proj", *index), 2 * hidden)]
            yield from self._linear(f"{name}.gate_up", fused, width, bias=config.bias, expert=expert)
        elif config.gated:
            merged = [Rows(self._name(f"{kind}_gate_proj", *index), hidden), up]
            yield from self._linear(f"{name}.gate_up", merged, width, bias=config.bias, expert=expert)
        else:
            yield from self._linear(f"{name}.up", [up], width, bias=config.bias, expert=expert)
        down = [Rows(self._name(f"{kind}_down_proj", *index), width)]
        yield from self._linear(f"{name}.down", down, hidden, bias=config.bias, expert=expert)

    def _mixture(self, config: MixtureConfig) -> Iterator[Slot]:
        router = Rows(self._name("router"), config.num_experts)
        yield from self._linear("feed_forward.router", [router], self.width, bias=False)
        for expert in range(config.num_experts):
            yield from self._feed_forward(f"feed_forward.experts.{expert}", config.expert, (expert, config.num_experts))

    def _linear(
        self, name: str, rows: Sequence[Rows], columns: int, *, bias: bool, expert: tuple[int, int] | None = None
    ) -> Iterator[Slot]:
        yield from linear_slots(f"{self.prefix}.{name}", rows, columns, self.names, bias=bias, expert=expert)

    def _norm(self, name: str, field_name: str, config: NormConfig | None, width: int) -> Iterator[Slot]:
        if config is not None:
            yield from norm_slots(f"{self.prefix}.{name}", self._name(field_name), config, width, self.names)


def linear_slots(
    name: str, rows: Sequence[Rows], columns: int, names: TensorNames, *, bias: bool, expert: tuple[int, int] | None = None
) -> Iterator[Slot]:
    """A linear's weight [rows, columns], and its bias, made up of rows of the tensors. `expert`: its index, and of how many."""
    stacked = expert if names.stacked_experts else None
    parts = []
    for part in rows:
        shape = (columns, part.stored) if names.transposed else (part.stored, columns)
        if stacked is not None:
            parts.append(Part(f"{part.source}.weight", (stacked[1], *shape), part.indices, stacked[0], names.transposed))
        else:
            parts.append(Part(f"{part.source}.weight", shape, part.indices, None, names.transposed))
    yield Slot(f"{name}.weight", tuple(parts))
    if bias:
        yield Slot(f"{name}.bias", tuple(Part(f"{part.source}.bias", (part.stored,), part.indices) for part in rows))


def norm_slots(name: str, source: str, config: NormConfig, width: int, names: TensorNames, rows: Indices | None = None) -> Iterator[Slot]:
    """A norm's weight and bias [width], as far as it has them, from the tensors that begin with `source`."""
    for kind in _parameters(config):
        yield Slot(f"{name}.{kind}", (Part(f"{source}.{kind}", (width,), rows, offset=_norm_offset(names, config, kind)),))


def _parameters(config: NormConfig) -> list[str]:
    return [*(["weight"] if config.weight else []), *(["bias"] if config.bias else [])]


def _norm_offset(names: TensorNames, config: NormConfig, kind: str) -> float:
    return names.norm_offset if kind == "weight" and config.kind is NormKind.RMS else 0.0


def _each_head(heads: int, order: Indices | None) -> Indices | None:
    """The same order of entries within each of so many heads."""
    return None if order is None else (np.arange(heads)[:, None] * len(order) + order).reshape(-1)
