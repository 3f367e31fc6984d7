"""Stamp: inline compiled pieces, as often as they occur, into one subgraph for each signature.

Tracing every layer is what makes exporters slow. A block kind is compiled once; here it is copied, with the layer's index put
into its weights' names and its caches bound to that layer's. No operator is interpreted, only indices are rewritten.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from flatlm.convert import flatbuffer
from flatlm.convert.compile import CompiledPiece, Skeleton

_IF = (schema.BuiltinOperator.IF, 1)
_RESHAPE = (schema.BuiltinOperator.RESHAPE, 1)


@dataclass(frozen=True)
class Step:
    """One use of a piece. `bind` renames its inputs and outputs; `{}` in its weights' names becomes `layer`, `{expert}` `expert`.

    `condition` names a boolean: where it is false the piece is not run, and each of its outputs is the input of that name.
    """

    piece: str
    layer: int | None = None
    bind: Mapping[str, str] = field(default_factory=dict)
    expert: int | None = None
    condition: str | None = None


@dataclass(frozen=True)
class SignaturePlan:
    """An entry point of the exported file: its name, its inputs and outputs in order, and the pieces it is made of.

    `values`: what outputs are called among the steps, those that have another name there.
    """

    name: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    steps: Sequence[Step]
    values: Mapping[str, str] = field(default_factory=dict)


def stamp(skeleton: Skeleton, plans: Sequence[SignaturePlan]) -> Any:
    """A model object with one subgraph and one signature for each plan; weights are still named calls."""
    model = schema.ModelT()
    model.version = 3
    model.description = b"FlatLM"
    model.operatorCodes = skeleton.model.operatorCodes
    model.buffers = skeleton.model.buffers
    branches = _Branches(skeleton, first=len(plans))
    graphs = [_Graph(skeleton, plan, branches).subgraph for plan in plans]
    model.subgraphs = [*graphs, *branches.subgraphs]
    model.signatureDefs = [_signature(plan, index, graph) for index, (plan, graph) in enumerate(zip(plans, graphs, strict=True))]
    # The converter's notes on its own file (such as a least runtime version) still hold.
    model.metadata = [entry for entry in skeleton.model.metadata or [] if entry.name == b"min_runtime_version"]
    return model


class _Graph:
    """One signature's subgraph, growing step by step. `values` maps the names in sight to tensor indices."""

    def __init__(self, skeleton: Skeleton, plan: SignaturePlan, branches: "_Branches") -> None:
        self._branches = branches
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
            if step.condition is None:
                self._inline(skeleton.pieces[step.piece], step)
            else:
                self._run_if(skeleton.pieces[step.piece], step)
        self.subgraph.inputs = np.array(list(self.inputs.values()), np.int32)
        self.subgraph.outputs = np.array([self.values[plan.values.get(name, name)] for name in plan.outputs], np.int32)
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
                name = op.builtinOptions2.backendConfig.replace(b"{}", str(step.layer).encode())
                clone.builtinOptions2.backendConfig = name.replace(b"{expert}", str(step.expert).encode())
            self.subgraph.operators.append(clone)
        for name, index in piece.outputs.items():
            self.values[step.bind.get(name, name)] = move(index)

    def _run_if(self, piece: CompiledPiece, step: Step) -> None:
        """The piece in a subgraph of its own, behind the runtime's IF."""
        assert step.condition is not None
        then, other = self._branches.then(step), self._branches.otherwise(step)
        op = schema.OperatorT()
        op.opcodeIndex = flatbuffer.opcode_index(self.model, *_IF)
        op.builtinOptionsType, op.builtinOptions = schema.BuiltinOptions.IfOptions, schema.IfOptionsT()
        op.builtinOptions.thenSubgraphIndex, op.builtinOptions.elseSubgraphIndex = then, other
        given = [self.values[step.bind.get(name, name)] for name in piece.inputs]
        op.inputs = np.array([self.values[step.condition], *given], np.int32)
        for name, index in piece.outputs.items():
            self.values[step.bind.get(name, name)] = self._add(piece.subgraph.tensors[index], f"{step.piece}/{len(self.subgraph.tensors)}")
        op.outputs = np.array([self.values[step.bind.get(name, name)] for name in piece.outputs], np.int32)
        self.subgraph.operators.append(op)

    def _place(self, tensor: Any, prefix: str) -> int:
        if not flatbuffer.is_constant(self.model, tensor):
            return self._add(tensor, f"{prefix}/{len(self.subgraph.tensors)}")
        key = id(tensor)  # the piece's own tensor: one constant for all its copies
        if key not in self._constants:
            self._constants[key] = self._add(tensor, f"constant/{len(self._constants)}")
        return self._constants[key]


class _Branches:
    """The subgraphs of conditional steps, which follow those of the signatures, `first` of them, in the model."""

    def __init__(self, skeleton: Skeleton, *, first: int) -> None:
        self.subgraphs: list[Any] = []
        self._skeleton = skeleton
        self._first = first
        self._others: dict[str, int] = {}

    def then(self, step: Step) -> int:
        """The index of a new subgraph that runs the step's piece."""
        piece = self._skeleton.pieces[step.piece]
        name = f"{step.piece}/{step.layer}/{step.expert}"
        plan = SignaturePlan(name, list(piece.inputs), list(piece.outputs), [replace(step, bind={}, condition=None)])
        return self._append(_Graph(self._skeleton, plan, self).subgraph)

    def otherwise(self, step: Step) -> int:
        """The index of the subgraph that gives back the inputs that the piece would change: one for all its uses."""
        if step.piece not in self._others:
            piece = self._skeleton.pieces[step.piece]
            graph = schema.SubGraphT()
            graph.name, graph.operators = f"{step.piece}/otherwise".encode(), []
            graph.tensors = [copy.copy(piece.subgraph.tensors[index]) for index in piece.inputs.values()]
            graph.inputs, outputs = np.arange(len(graph.tensors), dtype=np.int32), []
            for name in piece.outputs:
                source = list(piece.inputs).index(name)
                graph.tensors.append(copy.copy(graph.tensors[source]))
                op = schema.OperatorT()
                op.opcodeIndex = flatbuffer.opcode_index(self._skeleton.model, *_RESHAPE)
                op.builtinOptionsType, op.builtinOptions = schema.BuiltinOptions.ReshapeOptions, schema.ReshapeOptionsT()
                op.builtinOptions.newShape = graph.tensors[source].shape
                op.inputs, op.outputs = np.array([source], np.int32), np.array([len(graph.tensors) - 1], np.int32)
                graph.operators.append(op)
                outputs.append(len(graph.tensors) - 1)
            graph.outputs = np.array(outputs, np.int32)
            self._others[step.piece] = self._append(graph)
        return self._others[step.piece]

    def _append(self, graph: Any) -> int:
        self.subgraphs.append(graph)
        return self._first + len(self.subgraphs) - 1


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
