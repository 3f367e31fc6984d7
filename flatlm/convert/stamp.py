"""Stamp: inline compiled pieces, as often as they occur, into one subgraph for each signature.

Tracing every layer is what makes exporters slow. A block kind is compiled once; here it is copied, with the layer's index put
into its weights' names and its caches bound to that layer's. No operator is interpreted, only indices are rewritten.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from flatlm.convert import flatbuffer
from flatlm.convert.compile import CompiledPiece, Skeleton


@dataclass(frozen=True)
class Step:
    """One use of a piece. `bind` renames its inputs and outputs; `{}` in its weights' names becomes `layer`."""

    piece: str
    layer: int | None = None
    bind: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SignaturePlan:
    """An entry point of the exported file: its name, its inputs and outputs in order, and the pieces it is made of."""

    name: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    steps: Sequence[Step]


def stamp(skeleton: Skeleton, plans: Sequence[SignaturePlan]) -> Any:
    """A model object with one subgraph and one signature for each plan; weights are still named calls."""
    model = schema.ModelT()
    model.version = 3
    model.description = b"FlatLM"
    model.operatorCodes = skeleton.model.operatorCodes
    model.buffers = skeleton.model.buffers
    model.subgraphs, model.signatureDefs = [], []
    for index, plan in enumerate(plans):
        graph = _Graph(skeleton, plan)
        model.subgraphs.append(graph.subgraph)
        model.signatureDefs.append(_signature(plan, index, graph.subgraph))
    # The converter's notes on its own file (such as a least runtime version) still hold.
    model.metadata = [entry for entry in skeleton.model.metadata or [] if entry.name == b"min_runtime_version"]
    return model


class _Graph:
    """One signature's subgraph, growing step by step. `values` maps the names in sight to tensor indices."""

    def __init__(self, skeleton: Skeleton, plan: SignaturePlan) -> None:
        self.model = skeleton.model
        self.subgraph = schema.SubGraphT()
        self.subgraph.name = plan.name.encode()
        self.subgraph.tensors, self.subgraph.operators = [], []
        self.values: dict[str, int] = {}
        self._constants: dict[int, int] = {}
        for name in plan.inputs:
            self._declare_input(name, skeleton, plan)
        self.inputs = dict(self.values)  # a step may bind an output to an input's name, as a cache's update does
        for step in plan.steps:
            self._inline(skeleton.pieces[step.piece], step)
        self.subgraph.inputs = np.array(list(self.inputs.values()), np.int32)
        self.subgraph.outputs = np.array([self.values[name] for name in plan.outputs], np.int32)
        _drop_dead_operators(self.subgraph)
        _drop_unused_tensors(self.subgraph)

    def _add(self, tensor: Any, name: str) -> int:
        tensor = copy.copy(tensor)
        tensor.name = name.encode()
        self.subgraph.tensors.append(tensor)
        return len(self.subgraph.tensors) - 1

    def _declare_input(self, name: str, skeleton: Skeleton, plan: SignaturePlan) -> None:
        for step in plan.steps:
            piece = skeleton.pieces[step.piece]
            for inner, index in piece.inputs.items():
                if step.bind.get(inner, inner) == name:
                    self.values[name] = self._add(piece.subgraph.tensors[index], f"{plan.name}_{name}")
                    return
        raise ValueError(f"signature {plan.name}: no piece takes the input {name}")

    def _inline(self, piece: CompiledPiece, step: Step) -> None:
        prefix = step.piece if step.layer is None else f"{step.piece}/{step.layer}"
        moved = {index: self.values[step.bind.get(name, name)] for name, index in piece.inputs.items()}

        def move(index: int) -> int:
            if index < 0:
                return index
            if index not in moved:
                moved[index] = self._place(piece.subgraph.tensors[index], prefix)
            return moved[index]

        for op in piece.operators:
            clone = copy.copy(op)
            clone.inputs = np.array([move(i) for i in op.inputs], np.int32)
            clone.outputs = np.array([move(i) for i in op.outputs], np.int32)
            if isinstance(op.builtinOptions2, schema.StablehloCustomCallOptionsT) and step.layer is not None:
                clone.builtinOptions2 = copy.copy(op.builtinOptions2)
                clone.builtinOptions2.backendConfig = op.builtinOptions2.backendConfig.replace(b"{}", str(step.layer).encode())
            self.subgraph.operators.append(clone)
        for name, index in piece.outputs.items():
            self.values[step.bind.get(name, name)] = move(index)

    def _place(self, tensor: Any, prefix: str) -> int:
        if not flatbuffer.is_constant(self.model, tensor):
            return self._add(tensor, f"{prefix}/{len(self.subgraph.tensors)}")
        key = id(tensor)  # the piece's own tensor: one constant for all its copies
        if key not in self._constants:
            self._constants[key] = self._add(tensor, f"constant/{len(self._constants)}")
        return self._constants[key]


def _drop_dead_operators(graph: Any) -> None:
    """Remove operators whose results nobody reads, such as the last block's feed-forward where only its cache is asked for."""
    needed = {int(index) for index in graph.outputs}
    kept = []
    for op in reversed(graph.operators):
        if any(int(index) in needed for index in op.outputs):
            kept.append(op)
            needed.update(int(index) for index in op.inputs if index >= 0)
    graph.operators = kept[::-1]


def _drop_unused_tensors(graph: Any) -> None:
    used = {int(index) for op in graph.operators for index in (*op.inputs, *op.outputs) if index >= 0}
    used |= {int(index) for index in (*graph.inputs, *graph.outputs)}
    position = {old: new for new, old in enumerate(sorted(used))}
    graph.tensors = [graph.tensors[index] for index in sorted(used)]
    for op in graph.operators:
        op.inputs = np.array([position.get(int(i), -1) for i in op.inputs], np.int32)
        op.outputs = np.array([position[int(i)] for i in op.outputs], np.int32)
    graph.inputs = np.array([position[int(i)] for i in graph.inputs], np.int32)
    graph.outputs = np.array([position[int(i)] for i in graph.outputs], np.int32)


def _signature(plan: SignaturePlan, index: int, graph: Any) -> Any:
    entry = schema.SignatureDefT()
    entry.signatureKey = plan.name.encode()
    entry.subgraphIndex = index
    entry.inputs = [_tensor_map(name, int(tensor)) for name, tensor in zip(plan.inputs, graph.inputs, strict=True)]
    entry.outputs = [_tensor_map(name, int(tensor)) for name, tensor in zip(plan.outputs, graph.outputs, strict=True)]
    return entry


def _tensor_map(name: str, index: int) -> Any:
    item = schema.TensorMapT()
    item.name = name.encode()
    item.tensorIndex = index
    return item
