"""Traced: whole modules, written elsewhere, as signatures; layers that repeat are found in their graph, and each kind compiled once.

They emit named calls, and hold no weights while they are traced. A module that runs its own loop over its layers is traced once, which
costs torch a few milliseconds an operator. What is slow is the converter; it gets the graph's distinct runs (`repeats.py`), each as a
module of its own, and all others are stamped from them. Where nothing repeats, or the graph holds what cannot be taken apart, the module
is compiled whole: the file computes the same, the export is slower.
"""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from flatlm.convert import repeats
from flatlm.convert.compile import Piece, compile_pieces
from flatlm.convert.stamp import SignaturePlan, Step, stamp
from flatlm.layers import ops


@dataclass(frozen=True)
class TracedSignature:
    """A function of named tensors to named tensors, traced with `inputs` inside `ops.exporting()`; `outputs`: their names, in order.

    The names of its weights are whole: no `{}` stands for a layer. No two inputs may be the same tensor object.
    """

    name: str
    call: Callable[..., dict[str, Tensor]]
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]


@dataclass(frozen=True)
class SplitSignature:
    """What is compiled for a signature, and how it is stamped from that."""

    pieces: Sequence[Piece]
    plan: SignaturePlan


def stamp_traced(signatures: Sequence[TracedSignature]) -> Any:
    """Compile each distinct run of layers once and stamp all signatures: a model object in which weights are still named calls."""
    split = [split_signature(signature) for signature in signatures]
    skeleton = compile_pieces([piece for each in split for piece in each.pieces])
    return stamp(skeleton, [each.plan for each in split])


def split_signature(signature: TracedSignature) -> SplitSignature:
    """The signature's prologue, one layer of each kind, and epilogue; or one piece, if nothing repeats."""
    graph = _trace(signature)
    runs = [] if graph is None else repeats.cut(graph.nodes, graph.digests)
    if graph is None or len(runs) < 2:
        return whole(signature)
    return _split(signature, graph, runs)


def whole(signature: TracedSignature) -> SplitSignature:
    """The signature as one piece."""
    name = f"{signature.name}/whole"
    plan = SignaturePlan(signature.name, list(signature.inputs), list(signature.outputs), [Step(name)])
    return SplitSignature([Piece(name, signature.call, signature.inputs)], plan)


@dataclass(frozen=True)
class _Graph:
    """A traced signature. Constants are whatever tensors the module brought along."""

    nodes: Sequence[fx.Node]
    inputs: Mapping[fx.Node, str]
    constants: Mapping[fx.Node, Tensor]
    digests: Mapping[fx.Node, Hashable]
    outputs: Mapping[str, fx.Node]

    def value(self, node: fx.Node) -> str:
        """What the node's tensor is called while its signature is stamped; no input has a name like those of inner values."""
        return self.inputs.get(node, f"%{node.name}")


class _Held(nn.Module):
    """Holds the call where torch.export sees no parameters."""

    def __init__(self, call: Callable[..., dict[str, Tensor]]) -> None:
        super().__init__()
        self._held = (call,)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return self._held[0](**inputs)


def _trace(signature: TracedSignature) -> _Graph | None:
    """The signature's graph; None where it holds anything but plain functions of tensors."""
    with ops.exporting(), torch.inference_mode():
        program = torch.export.export(_Held(signature.call), (), dict(signature.inputs), strict=False)
        if any(_mutates(node) for node in program.graph.nodes):
            program = program.run_decompositions({})  # torch's way to say the same without writing in place
    state = program.graph_signature
    nodes = [node for node in program.graph.nodes if node.op not in ("placeholder", "output")]
    outputs = program.graph.output_node().args[0]
    if not all(_is_plain(node) for node in nodes) or not all(isinstance(node, fx.Node) for node in outputs):
        return None
    if state.buffers_to_mutate or state.user_inputs_to_mutate or len(outputs) != len(state.user_outputs):
        return None
    keys, given = program.call_spec.in_spec.child(1).context, program.call_spec.out_spec.context
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    names = dict(zip(state.user_inputs, keys, strict=True))
    inputs = {node: names[name] for name, node in placeholders.items() if name in names}
    constants = {node: _constant(program, name) for name, node in placeholders.items() if name not in names}
    digests = {node: _digest(value) for node, value in constants.items()}
    if any(node in constants for node in outputs):
        return None
    return _Graph(nodes, inputs, constants, digests, dict(zip(given, outputs, strict=True)))


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_plain(node: fx.Node) -> bool:
    """A functional operator, or the choice of one of an operator's results."""
    if node.op != "call_function" or _mutates(node):
        return False
    return isinstance(node.target, torch._ops.OpOverload) or getattr(node.target, "__name__", "") == "getitem"


def _constant(program: torch.export.ExportedProgram, name: str) -> Tensor:
    state = program.graph_signature
    target = {spec.arg.name: spec.target for spec in state.input_specs}[name]
    value: Tensor = program.constants[target] if target in program.constants else program.state_dict[target]
    return value.detach()


def _digest(value: Tensor) -> Hashable:
    plain = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return tuple(value.shape), value.dtype, hashlib.sha256(plain.tobytes()).digest()


def _split(signature: TracedSignature, graph: _Graph, runs: Sequence[repeats.Run]) -> SplitSignature:
    kinds: dict[Hashable, list[repeats.Run]] = {}
    for run in runs:
        kinds.setdefault(repeats.fingerprint(run, graph.digests), []).append(run)
    compiled = [_Kind(f"{signature.name}/{number}", graph, same) for number, same in enumerate(kinds.values())]
    by_fingerprint = dict(zip(kinds, compiled, strict=True))
    steps = [by_fingerprint[repeats.fingerprint(run, graph.digests)].step(run) for run in runs]
    pieces = [kind.piece for kind in compiled]
    read = {value for step in steps for value in step.bind.values()}
    if unread := {name: value for name, value in signature.inputs.items() if name not in read}:
        pieces.append(Piece(f"{signature.name}/unread", lambda **_: {}, unread))
        steps.append(Step(f"{signature.name}/unread"))
    values = {name: graph.value(node) for name, node in graph.outputs.items()}
    return SplitSignature(pieces, SignaturePlan(signature.name, list(signature.inputs), list(signature.outputs), steps, values))


class _Kind:
    """Equal runs, and the piece that is compiled for them. It gives out what any of them has to give."""

    def __init__(self, name: str, graph: _Graph, runs: Sequence[repeats.Run]) -> None:
        self._graph = graph
        wanted = set(graph.outputs.values())
        places = {
            place for run in runs for place, node in enumerate(run.nodes) if node in wanted or not node.users.keys() <= set(run.nodes)
        }
        self._places = sorted(places)
        self.piece = self._build(name, runs[0])

    def step(self, run: repeats.Run) -> Step:
        """The piece in the place of the run."""
        bind = {f"given_{number}": self._graph.value(node) for number, node in enumerate(self._given(run))}
        bind |= {f"made_{place}": self._graph.value(run.nodes[place]) for place in self._places}
        return Step(self.piece.name, run.layer, bind)

    def _given(self, run: repeats.Run) -> list[fx.Node]:
        """The tensors from outside that the run reads, in the order in which it does so first."""
        inside = set(run.nodes)
        read = (node for reader in run.nodes for node in reader.all_input_nodes)
        return list(dict.fromkeys(node for node in read if node not in inside and node not in self._graph.constants))

    def _build(self, name: str, run: repeats.Run) -> Piece:
        """The run as a module of its own, its layer's index open."""
        module, graph = nn.Module(), fx.Graph()
        new = {node: graph.placeholder(f"given_{number}") for number, node in enumerate(self._given(run))}
        inputs = {f"given_{number}": _sample(node) for number, node in enumerate(self._given(run))}

        def moved(value: Any) -> Any:
            if isinstance(value, str):
                return run.template(value)
            if not isinstance(value, fx.Node):
                return value
            if value not in new:
                constant = f"constant_{len(new)}"
                module.register_buffer(constant, self._graph.constants[value])
                new[value] = graph.get_attr(constant)
            return new[value]

        for node in run.nodes:
            args, kwargs = map_aggregate(node.args, moved), map_aggregate(node.kwargs, moved)
            new[node] = graph.create_node("call_function", node.target, args, kwargs)
        graph.output({f"made_{place}": new[run.nodes[place]] for place in self._places})
        return Piece(name, fx.GraphModule(module, graph), inputs)


def _sample(node: fx.Node) -> Tensor:
    value = node.meta["val"]
    return torch.zeros(value.shape, dtype=value.dtype)
