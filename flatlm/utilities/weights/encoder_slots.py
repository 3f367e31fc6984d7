"""Every parameter of an encoder, and the checkpoint tensors that it is made of."""

from collections.abc import Container, Iterator
from dataclasses import fields, replace
from typing import Any

from flatlm.layers.encoder_config import EmbeddingHead, EncoderConfig, HiddenStates, MaskedLMHead, SequenceHead, TokenHead
from flatlm.utilities.weights.slots import BlockSlots, Part, Rows, Slot, linear_slots, norm_slots
from flatlm.utilities.weights.tensor_names import HeadNames, TensorNames

_OLDER = {"weight": "gamma", "bias": "beta"}
"""What the first checkpoints call a layer norm's parameters."""


def encoder_slots(config: EncoderConfig, names: TensorNames, tensors: Container[str]) -> Iterator[Slot]:
    """Every parameter with its source, in the model's order. `tensors`: what the checkpoint has, which decides between two names."""
    for slot in _slots(config, names, tensors):
        yield replace(slot, parts=tuple(_as_found(part, tensors) for part in slot.parts)) if "norm" in slot.name else slot


def head_names(config: EncoderConfig, names: TensorNames) -> HeadNames | None:
    """Those of the configuration's own head, where it is for a task that has one."""
    return next((head for head in names.heads if head.task == config.task), None)


def ignored_patterns(config: EncoderConfig, names: TensorNames) -> list[str]:
    """Tensors that the task at hand leaves out, and that a checkpoint which was trained for it may have.

    Features and embeddings leave out whatever head there is; any other task its own head's companions, and the pooler. Patterns do not
    reach what is used.
    """
    own = head_names(config, names)
    heads = names.heads if own is None else ()
    patterns = [pattern for head in heads for pattern in head.patterns] + ([] if names.pooler is None else [f"{names.pooler}.*"])
    if own is not None:
        patterns += [*own.ignored, *([own.bias, f"{own.output}.bias"] if own.bias is not None else [])]
        if config.tied_head:
            patterns.append(f"{own.output}.weight")
    return patterns


def _slots(config: EncoderConfig, names: TensorNames, tensors: Container[str]) -> Iterator[Slot]:
    narrow, width = config.embedding_dim, config.width
    tables = (
        ("embedding", names.embedding, config.vocab_size),
        ("position_embedding", names.position_embedding, config.positions.rows),
        ("token_type_embedding", names.token_type_embedding, config.token_types),
    )
    for name, source, rows in tables:
        if rows:
            yield Slot(f"{name}.weight", (Part(f"{source}.weight", (rows, narrow)),))
    yield from norm_slots("embedding_norm", str(names.embedding_norm), config.embedding_norm, narrow, names)
    if config.projected:
        yield from linear_slots("embedding_projection", [Rows(str(names.embedding_proj), width)], narrow, names, bias=True)
    for index, block in enumerate(config.blocks):
        yield from BlockSlots(block, _of_block(names, *divmod(index, config.group)), index, width, f"blocks.{index}")
    yield from _head_slots(config, names, tensors)


def _head_slots(config: EncoderConfig, names: TensorNames, tensors: Container[str]) -> Iterator[Slot]:
    width, narrow, head = config.width, config.embedding_dim, config.head
    match head:
        case EmbeddingHead() | HiddenStates(None):
            return
        case HiddenStates():
            yield from linear_slots("head.dense", [Rows(str(names.pooler), width)], width, names, bias=True)
            return
    own = head_names(config, names)
    assert own is not None, f"no names for the task {config.task}"
    match head:
        case MaskedLMHead():
            yield from linear_slots("head.dense", [Rows(str(own.dense), narrow)], width, names, bias=True)
            yield from norm_slots("head.dense_norm", str(own.norm), head.norm, narrow, names)
            if not head.tied:
                yield Slot("lm_head.weight", (Part(f"{own.output}.weight", (config.vocab_size, narrow)),))
            yield Slot("lm_head.bias", (Part(_bias(own, tensors, tied=head.tied), (config.vocab_size,)),))
        case SequenceHead() | TokenHead():
            if own.dense is not None:
                yield from linear_slots("head.transform.dense", [Rows(own.dense, width)], width, names, bias=True)
            yield from linear_slots("head.output", [Rows(own.output, head.labels)], width, names, bias=True)


def _bias(head: HeadNames, tensors: Container[str], *, tied: bool) -> str:
    """A decoder's bias. Where it has two names, they are one parameter as long as the decoder is tied; else the decoder's own counts."""
    beside = f"{head.output}.bias"
    if head.bias is None:
        return beside
    first, second = (head.bias, beside) if tied else (beside, head.bias)
    return first if first in tensors or second not in tensors else second


def _of_block(names: TensorNames, group: int, block: int) -> TensorNames:
    """The names of one block, where a second `{}` stands for its place in its group."""
    written = {field.name: getattr(names, field.name) for field in fields(names)}
    two = {name: value for name, value in written.items() if isinstance(value, str) and value.count("{}") == 2}
    whole: dict[str, Any] = {name: value.format(group, block) for name, value in two.items()}
    return replace(names, **whole)


def _as_found(part: Part, tensors: Container[str]) -> Part:
    source, kind = part.tensor.rsplit(".", 1)
    older = f"{source}.{_OLDER[kind]}"
    return replace(part, tensor=older) if part.tensor not in tensors and older in tensors else part
