"""Where a family's checkpoints keep their tensors, and how they pack them: data, one record for each family."""

from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class HeadNames:
    """Where the head for a task keeps its tensors; names without `.weight` / `.bias`. None: it has none.

    `bias`: the whole name of the output's bias, where checkpoints may keep it apart from the output's weight. `ignored`: patterns (fnmatch)
    of tensors that are trained beside the head and that it does not read.
    """

    task: str
    output: str
    dense: str | None = None
    norm: str | None = None
    bias: str | None = None
    ignored: tuple[str, ...] = ()

    @property
    def patterns(self) -> tuple[str, ...]:
        """Of all that is the head's own."""
        names = (name for name in (self.output, self.dense, self.norm) if name is not None)
        return (*(f"{name}.*" for name in names), *([] if self.bias is None else [self.bias]), *self.ignored)


@dataclass(frozen=True)
class TensorNames:
    """Names without `.weight` / `.bias`; `{}` stands for the layer's index (and a second one for the expert's). None: the family has none.

    A fused projection takes the place of the separate ones.
    """

    embedding: str
    final_norm: str
    lm_head: str = "lm_head"
    logits_bias: str | None = None
    position_embedding: str | None = None
    block_position_embedding: str | None = None
    token_type_embedding: str | None = None
    embedding_norm: str | None = None
    embedding_proj: str | None = None
    relative_bias: str | None = None
    pre_attn_norm: str | None = None
    attn_query_proj: str | None = None
    attn_key_proj: str | None = None
    attn_value_proj: str | None = None
    attn_fused_qkv_proj: str | None = None
    attn_output_proj: str | None = None
    attn_query_norm: str | None = None
    attn_key_norm: str | None = None
    post_attn_norm: str | None = None
    pre_cross_norm: str | None = None
    cross_query_proj: str | None = None
    cross_key_proj: str | None = None
    cross_value_proj: str | None = None
    cross_output_proj: str | None = None
    pre_ff_norm: str | None = None
    ff_up_proj: str | None = None
    ff_down_proj: str | None = None
    ff_gate_proj: str | None = None
    ff_fused_gate_up_proj: str | None = None
    post_ff_norm: str | None = None
    router: str | None = None
    expert_gate_proj: str | None = None
    expert_up_proj: str | None = None
    expert_fused_gate_up_proj: str | None = None
    expert_down_proj: str | None = None
    pooler: str | None = None
    heads: tuple[HeadNames, ...] = ()
    """Of an encoder: one for each task that a checkpoint may be trained for."""

    encoder: "TensorNames | None" = None
    """The encoder's own, where these are a decoder's beside it. What both share has one name in both."""

    grouped_qkv: bool = False
    """The rows of a fused qkv come group by group, [K, (N/K queries, key, value), H], not as [queries | keys | values]."""
    interleaved_rope: bool = False
    """Entries 2i and 2i + 1 of a head turn together, not i and i + R/2."""
    transposed: bool = False
    """The blocks' matrices are stored [in, out] (transformers' Conv1D)."""
    stacked_experts: bool = False
    """An expert's matrices are slices [e] of one tensor [E, out, in]."""
    head_norms_apart: bool = False
    """Each head's query or key norm is a tensor of its own: their names have a second `{}`, for the head."""
    norm_offset: float = 0.0
    """Added to the RMS norms' weights: 1 where the checkpoint keeps their difference from 1."""

    prefixes: tuple[tuple[str, str], ...] = ()
    """Other beginnings that checkpoints give the names: (as written here, as found there). The first under which the embedding is found."""
    ignored: tuple[str, ...] = ()
    """Patterns (fnmatch) of tensors that checkpoints of the family carry and that no number depends on."""

    def renamed(self, written: str, found: str) -> "TensorNames":
        """The same with one beginning in place of another."""
        changed: dict[str, Any] = {}
        for field in fields(self):
            name = getattr(self, field.name)
            if isinstance(name, str) and name.startswith(written):
                changed[field.name] = found + name.removeprefix(written)
            elif isinstance(name, TensorNames):
                changed[field.name] = name.renamed(written, found)
        heads = tuple(_head_renamed(head, written, found) for head in self.heads)
        return replace(self, **changed, heads=heads)


def _head_renamed(head: HeadNames, written: str, found: str) -> HeadNames:
    """Only what lies in the body, as BERT's pooler does, begins so."""
    dense = head.dense
    return replace(head, dense=found + dense.removeprefix(written)) if dense is not None and dense.startswith(written) else head
