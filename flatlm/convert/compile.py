"""Compile: pieces of a model, each once, to small weight-free TFLite subgraphs, through torch.export and litert-torch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatlm.convert import flatbuffer
from flatlm.convert.generic import Signatures
from flatlm.layers import ops


@dataclass(frozen=True)
class Piece:
    """A function of named tensors to named tensors, to be traced with `inputs` (no two of which may be the same tensor object)."""

    name: str
    call: Callable[..., dict[str, Tensor]]
    inputs: Mapping[str, Tensor]


@dataclass(frozen=True)
class CompiledPiece:
    """Where a piece lies in the compiled model: its subgraph, and its tensors' indices there by name."""

    subgraph: Any
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


@dataclass(frozen=True)
class Skeleton:
    """The compiled pieces, and the flatbuffer object that owns their operator codes and constant buffers."""

    model: Any
    pieces: Mapping[str, CompiledPiece]


class _Traced(nn.Module):
    """Holds the call where torch.export sees no parameters: what the model is made of is on the meta device, and stays out."""

    def __init__(self, call: Callable[..., dict[str, Tensor]]) -> None:
        super().__init__()
        self._call = (call,)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return self._call[0](**inputs)


def compile_pieces(pieces: Sequence[Piece]) -> Skeleton:
    """Trace and lower every piece, all in one conversion, so that they share operator codes and constants."""
    signatures = Signatures()
    for piece in pieces:
        signatures = signatures.signature(piece.name, _Traced(piece.call), sample_kwargs=piece.inputs)
    with ops.exporting(), torch.inference_mode():
        model = flatbuffer.parse(signatures.convert().content)
    compiled = {}
    for entry in model.signatureDefs:
        inputs = {item.name.decode(): item.tensorIndex for item in entry.inputs}
        outputs = {item.name.decode(): item.tensorIndex for item in entry.outputs}
        compiled[entry.signatureKey.decode()] = CompiledPiece(model.subgraphs[entry.subgraphIndex], inputs, outputs)
    return Skeleton(model, compiled)
