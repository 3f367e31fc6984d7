"""Measure the ranges that a static recipe needs: an eager module on samples, the least and the greatest number at each linear."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F  # the field's own name for it
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flatlm.errors import RecipeError
from flatlm.quantize.activations import ActivationRange, LayerRanges
from flatlm.quantize.weight_names import weight_names


def calibrate(module: nn.Module, samples: Iterable[tuple[Any, ...]]) -> dict[str, LayerRanges]:
    """The ranges of every linear that runs, by its weight's name, over all samples: argument tuples of `module`, run without gradients.

    A linear is a call of `torch.nn.functional.linear` whose weight is one of the module's parameters: nn.Linear, FlatLM's own layers, or a
    plain call, as torch.export sees them. Several linears of one weight have one range. RecipeError where no sample reaches a linear, or
    one gives NaN or infinity.
    """
    names = {id(tensor): name for name, tensor in weight_names(module).items()}
    recorder = _Recorder(names)
    training = module.training
    module.eval()
    try:
        with torch.no_grad(), recorder:
            for arguments in samples:
                module(*arguments)
    finally:
        module.train(training)
    if not recorder.ranges:
        raise RecipeError("calibration: no linear was run; give samples as tuples of the module's arguments")
    return recorder.ranges


class _Recorder(TorchFunctionMode):
    """Sees every linear on its way. A hook of modules would miss a head that is a plain call, and would have to know each kind of layer."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self.ranges: dict[str, LayerRanges] = {}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.linear:
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
            name = self._names.get(id(given["weight"]))
            if name is not None:
                self._add(name, given["input"], result)
        return result

    def _add(self, name: str, read: Tensor, gave: Tensor) -> None:
        try:
            seen = LayerRanges(_range(read), _range(gave))
        except RecipeError as error:
            raise RecipeError(f"calibration: the linear of {name!r}: {error}") from error
        self.ranges[name] = seen.union(self.ranges[name]) if name in self.ranges else seen


def _range(values: Tensor) -> ActivationRange:
    low, high = torch.aminmax(values.to(torch.float32))
    return ActivationRange(low.item(), high.item())
