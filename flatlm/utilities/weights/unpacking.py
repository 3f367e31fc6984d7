"""From a model's parameters back to the checkpoint tensors that they were made of: the inverse of slots."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from flatlm.utilities.weights.slots import Part, Slot


def checkpoint_tensors(slots: Iterable[Slot], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor that the slots read, by its own name, in the parameters' dtype: what gives these parameters again.

    Rows are put back where they came from, matrices transposed, offsets taken off. What one tensor gave to several parameters is put
    together. Raises ValueError where a tensor has rows that no parameter holds, so that they are not known.
    """
    tensors: dict[str, Tensor] = {}
    known: dict[str, Tensor] = {}
    for slot in slots:
        values = parameters[slot.name].detach().cpu()
        start = 0
        for part in slot.parts:
            if part.tensor not in tensors:
                stack = () if part.expert is None else part.shape[:1]
                tensors[part.tensor] = torch.empty(part.shape, dtype=values.dtype)
                known[part.tensor] = torch.zeros(*stack, part.matrix[0], dtype=torch.bool)
            taken = 1 if slot.own_shape is not None else part.taken[0]
            own = values[start : start + taken]
            _put(part, own[0] if slot.own_shape is not None else own, tensors[part.tensor], known[part.tensor])
            start += taken
    if holes := sorted(name for name, rows in known.items() if not rows.all()):
        raise ValueError(f"rows of {', '.join(holes)} are in no parameter")
    return tensors


def _put(part: Part, values: Tensor, tensor: Tensor, known: Tensor) -> None:
    """Write what a part gave into its tensor. `known`: its rows that have been written, as `Part.rows` counts them."""
    if part.expert is not None:
        tensor, known = tensor[part.expert], known[part.expert]
    where = slice(None) if part.rows is None else torch.from_numpy(part.rows)
    matrix = tensor.T if part.transposed else tensor
    matrix[where] = values - part.offset if part.offset else values
    known[where] = True
