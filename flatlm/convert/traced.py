"""Whole modules, written elsewhere, as signatures: they emit named calls, and hold no weights while they are traced."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flatlm.convert.compile import Piece, compile_pieces
from flatlm.convert.stamp import SignaturePlan, Step, stamp


@dataclass(frozen=True)
class TracedSignature:
    """A function of named tensors to named tensors, traced with `inputs` inside `ops.exporting()`; `outputs`: their names, in order.

    The names of its weights are whole: no `{}` stands for a layer.
    """

    name: str
    call: Callable[..., dict[str, Tensor]]
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]


def stamp_traced(signatures: Sequence[TracedSignature]) -> Any:
    """A model object with one subgraph for each signature, in which weights are still named calls."""
    skeleton = compile_pieces([Piece(signature.name, signature.call, signature.inputs) for signature in signatures])
    plans = [SignaturePlan(each.name, list(each.inputs), list(each.outputs), [Step(each.name)]) for each in signatures]
    return stamp(skeleton, plans)
