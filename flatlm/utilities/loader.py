"""The plan of weights: which checkpoint tensors every parameter comes from. Total both ways, by names and shapes."""

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from flatlm.errors import CheckpointError
from flatlm.layers.config import BlockConfig, ModelConfig, NormConfig
from flatlm.layers.model import Decoder
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.checkpoints.store import TensorStore

MAX_PROBLEMS_LISTED = 12


@dataclass(frozen=True)
class TensorNames:
    """Where a checkpoint keeps its tensors: names without `.weight` / `.bias`, `{}` for the layer's index. None: the family has none."""

    embedding: str
    final_norm: str
    lm_head: str
    pre_attn_norm: str
    attn_query_proj: str
    attn_key_proj: str
    attn_value_proj: str
    attn_output_proj: str
    pre_ff_norm: str
    ff_up_proj: str
    ff_down_proj: str
    ff_gate_proj: str | None = None
    ignored: tuple[str, ...] = ()
    """Patterns (fnmatch) of tensors that checkpoints of the family carry and that no number depends on."""


@dataclass(frozen=True)
class Slot:
    """A parameter of the model, and the checkpoint tensors whose rows, one below the other, make it up."""

    name: str
    parts: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(shape[0] for _, shape in self.parts), *self.parts[0][1][1:])


class PlannedWeight:
    """A parameter, readable by rows straight from the checkpoint's files. What the exporter calls a weight source."""

    def __init__(self, slot: Slot, checkpoint: TensorStore) -> None:
        self.slot = slot
        self._checkpoint = checkpoint

    @property
    def shape(self) -> tuple[int, ...]:
        return self.slot.shape

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) in the stored dtype (the widest, where parts differ)."""
        pieces, first = [], 0
        for name, (count, *_) in self.slot.parts:
            low, high = max(start - first, 0), min(stop - first, count)
            if low < high:
                pieces.append(self._checkpoint.rows(name, low, high))
            first += count
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def origin(self, row: int) -> str:
        """The file and tensor that a row comes from."""
        for name, (count, *_) in self.slot.parts:
            if row < count:
                return f"{self._checkpoint.tensors[name].file}: tensor {name}"
            row -= count
        raise IndexError(row)


@dataclass(frozen=True)
class LoadPlan:
    """Every parameter's source, and the checkpoint tensors that are left out on purpose."""

    weights: Mapping[str, PlannedWeight]
    ignored: tuple[str, ...]

    def parameters(self) -> int:
        """How many numbers the model has."""
        return sum(int(torch.Size(weight.shape).numel()) for weight in self.weights.values())


class ModelLoader:
    """Plans and loads a checkpoint by a family's tensor names.

    `ModelLoader(directory, TENSOR_NAMES).load(model)` fills an eager model; `plan(config)` is what an export reads by.
    """

    def __init__(self, checkpoint: TensorStore | str | Path, names: TensorNames) -> None:
        self.checkpoint = open_checkpoint(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint
        self.names = names

    def plan(self, config: ModelConfig) -> LoadPlan:
        """Raises one CheckpointError that lists every missing, misshapen, unreadable or unused tensor, before anything is read."""
        slots = list(model_slots(config, self.names))
        tensors, problems, used = self.checkpoint.tensors, [], set()
        for slot in slots:
            for name, shape in slot.parts:
                used.add(name)
                if name not in tensors:
                    problems.append(f"{name} {list(shape)} is missing (needed for {slot.name})")
                elif tensors[name].shape != shape:
                    problems.append(f"{name} has shape {list(tensors[name].shape)}, the configuration asks for {list(shape)}")
                elif not tensors[name].dtype.is_floating_point:
                    problems.append(f"{name} is {tensors[name].dtype}, not a floating-point type")
        rest = [name for name in tensors if name not in used]
        patterns = [*self.names.ignored, *([f"{self.names.lm_head}.weight"] if config.tied_head else [])]
        ignored = tuple(name for name in rest if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
        problems += [f"{name} {list(tensors[name].shape)} is not used by the model" for name in rest if name not in ignored]
        if problems:
            more = f"\n  ... and {len(problems) - MAX_PROBLEMS_LISTED} more" if len(problems) > MAX_PROBLEMS_LISTED else ""
            listed = "".join(f"\n  {problem}" for problem in problems[:MAX_PROBLEMS_LISTED])
            raise CheckpointError(f"{self.checkpoint.directory}: config.json and the weights do not agree:{listed}{more}")
        return LoadPlan({slot.name: PlannedWeight(slot, self.checkpoint) for slot in slots}, ignored)

    def load(self, model: Decoder, *, dtype: torch.dtype = torch.float32) -> LoadPlan:
        """Give every parameter of an eager model (also one built on the meta device) its values, as `dtype`."""
        plan = self.plan(model.config)
        parameters = dict(model.named_parameters())  # a tied head is listed once
        if parameters.keys() != plan.weights.keys():
            raise CheckpointError(f"the model and its plan differ in {sorted(parameters.keys() ^ plan.weights.keys())}")
        state = {name: weight.rows(0, weight.shape[0]).to(dtype) for name, weight in plan.weights.items()}
        model.load_state_dict(state, strict=False, assign=True)
        if model.config.tied_head:
            model.lm_head.weight = model.embedding.weight
        model.requires_grad_(False)
        return plan


def model_slots(config: ModelConfig, names: TensorNames) -> Iterator[Slot]:
    """Every parameter of the model with its source tensors, in the model's order. Tied heads have no slot of their own."""
    width = config.embedding_dim
    yield Slot("embedding.weight", ((f"{names.embedding}.weight", (config.vocab_size, width)),))
    for layer, block in enumerate(config.blocks):
        yield from _block_slots(block, names, layer, width)
    yield from _norm("final_norm", names.final_norm, config.final_norm, width)
    head = [(names.lm_head, config.vocab_size)]
    slots = list(_linear("lm_head", head, width, bias=config.head_bias))
    yield from slots[1:] if config.tied_head else slots


def _block_slots(block: BlockConfig, names: TensorNames, layer: int, width: int) -> Iterator[Slot]:
    at = _LayerNames(names, layer)
    attention, feed_forward, prefix = block.attention, block.feed_forward, f"blocks.{layer}"
    queries, keys = attention.num_query_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim
    yield from _norm(f"{prefix}.attention_norm", at["pre_attn_norm"], block.attention_norm, width)
    merged = [(at["attn_query_proj"], queries), (at["attn_key_proj"], keys), (at["attn_value_proj"], keys)]
    yield from _linear(f"{prefix}.attention.qkv", merged, width, bias=attention.qkv_bias)
    yield from _linear(f"{prefix}.attention.output", [(at["attn_output_proj"], width)], queries, bias=attention.output_bias)
    yield from _norm(f"{prefix}.feed_forward_norm", at["pre_ff_norm"], block.feed_forward_norm, width)
    hidden = feed_forward.hidden_dim
    if feed_forward.gated:
        merged = [(at["ff_gate_proj"], hidden), (at["ff_up_proj"], hidden)]
        yield from _linear(f"{prefix}.feed_forward.gate_up", merged, width, bias=feed_forward.bias)
    else:
        yield from _linear(f"{prefix}.feed_forward.up", [(at["ff_up_proj"], hidden)], width, bias=feed_forward.bias)
    yield from _linear(f"{prefix}.feed_forward.down", [(at["ff_down_proj"], width)], hidden, bias=feed_forward.bias)


class _LayerNames(dict[str, str]):
    """The names with a layer's index put in."""

    def __init__(self, names: TensorNames, layer: int) -> None:
        super().__init__({f.name: getattr(names, f.name).format(layer) for f in fields(names) if isinstance(getattr(names, f.name), str)})


def _linear(name: str, parts: list[tuple[str, int]], columns: int, *, bias: bool) -> Iterator[Slot]:
    yield Slot(f"{name}.weight", tuple((f"{part}.weight", (rows, columns)) for part, rows in parts))
    if bias:
        yield Slot(f"{name}.bias", tuple((f"{part}.bias", (rows,)) for part, rows in parts))


def _norm(name: str, source: str, config: NormConfig, width: int) -> Iterator[Slot]:
    yield Slot(f"{name}.weight", ((f"{source}.weight", (width,)),))
    if config.bias:
        yield Slot(f"{name}.bias", ((f"{source}.bias", (width,)),))
