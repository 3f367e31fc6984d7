"""Compile: pieces of a model, each once, to small weight-free TFLite subgraphs, through torch.export and litert-torch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatlm.convert import flatbuffer
from flatlm.convert.generic import signature
from flatlm.layers import ops


@dataclass(frozen=True)
class Piece:
    """A function of named tensors to named tensors, to be traced with `inputs` (no two of which may be the same tensor object)."""

    name: str
    call: Callable[..., dict[str, Tensor]]
    inputs: Mapping[str, Tensor]


@dataclass(frozen=True)
class CompiledPiece:
    """Where a piece lies in the compiled model: its operators in the subgraph, and its tensors' indices there by name."""

    subgraph: Any
    operators: Sequence[Any]
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


@dataclass(frozen=True)
class Skeleton:
    """The compiled pieces, and the flatbuffer object that owns their operator codes and constant buffers."""

    model: Any
    pieces: Mapping[str, CompiledPiece]


class _Traced(nn.Module):
    """All pieces as one module of disconnected parts. It holds the calls where torch.export sees no parameters: what the model is
    made of is on the meta device, and stays out.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        super().__init__()
        self._pieces = tuple(pieces)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        for index, piece in enumerate(self._pieces):
            results = piece.call(**{name: inputs[_qualified(index, name)] for name in piece.inputs})
            outputs |= {_qualified(index, name): value for name, value in results.items()}
        return outputs


def _qualified(index: int, name: str) -> str:
    return f"piece{index}_{name}"


def compile_pieces(pieces: Sequence[Piece]) -> Skeleton:
    """Trace and lower every piece, all in one program: most of the converter's time is spent once a program, whatever is in it."""
    inputs = {_qualified(index, name): value for index, piece in enumerate(pieces) for name, value in piece.inputs.items()}
    with ops.exporting(), torch.inference_mode():
        model = flatbuffer.parse(signature("pieces", _Traced(pieces), sample_kwargs=inputs).convert().content)
    entry, graph = model.signatureDefs[0], model.subgraphs[0]
    inputs_at = {item.name.decode(): int(item.tensorIndex) for item in entry.inputs}
    outputs_at = {item.name.decode(): int(item.tensorIndex) for item in entry.outputs}
    compiled = {}
    for index, piece in enumerate(pieces):
        prefix = _qualified(index, "")
        outputs = {name.removeprefix(prefix): tensor for name, tensor in outputs_at.items() if name.startswith(prefix)}
        inside = {name: inputs_at[_qualified(index, name)] for name in piece.inputs}
        compiled[piece.name] = CompiledPiece(graph, _operators_behind(graph, outputs.values()), inside, outputs)
    return Skeleton(model, compiled)


def _operators_behind(graph: Any, outputs: Iterable[int]) -> list[Any]:
    """The operators that the outputs depend on, in the graph's order."""
    needed, found = set(outputs), []
    for op in reversed(graph.operators):
        if any(int(index) in needed for index in op.outputs):
            found.append(op)
            needed.update(int(index) for index in op.inputs)
    return found[::-1]
