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
    recorder = RangeRecorder(weight_names(module))
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


class RangeRecorder(TorchFunctionMode):
    """While it is entered, sees every linear on its way, and notes in `ranges` what those of the given weights read and give.

    `weights` by name. `counted`, where it is set, says which rows count: bool, of the inputs' shape without its last dimension. A hook of
    modules would miss a head that is a plain call, and would have to know each kind of layer. Raises OverflowingLinearError.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in weights.items()}
        self.ranges: dict[str, LayerRanges] = {}
        self.counted: Tensor | None = None

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
            seen = LayerRanges(self._range(read), self._range(gave))
        except RecipeError as error:
            raise OverflowingLinearError(name, error) from error
        self.ranges[name] = seen.union(self.ranges[name]) if name in self.ranges else seen

    def _range(self, values: Tensor) -> ActivationRange:
        low, high = torch.aminmax((values if self.counted is None else values[self.counted]).to(torch.float32))
        return ActivationRange(low.item(), high.item())


class OverflowingLinearError(RecipeError):
    """What the linear of the weight called `name` reads or gives is not finite."""

    def __init__(self, name: str, reason: RecipeError) -> None:
        super().__init__(f"calibration: the linear of {name!r}: {reason}")
        self.name = name
