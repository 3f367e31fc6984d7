"""What calibration knows of a projection's inputs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flatlm.layers.block import Block
from flatlm.utilities.calibration.stream import ModelStream, linears, row_slices


@dataclass
class InputStatistics:
    """Means over tokens of what a projection reads, y [C]: `hessian` y y^T and `size` |y|; `peak`: the largest |y|.

    `missing`: the mean of (x - y) y^T, where x is what it would read if nothing before it were quantized; None where x was not looked at.
    """

    hessian: Tensor
    missing: Tensor | None
    size: Tensor
    peak: Tensor
    count: int = 0

    @classmethod
    def empty(cls, width: int, *, missing: bool) -> "InputStatistics":
        return cls(torch.zeros(width, width), torch.zeros(width, width) if missing else None, torch.zeros(width), torch.zeros(width))

    def add(self, read: Tensor, exact: Tensor | None = None) -> None:
        """Tokens' inputs [n, C], and what they would be."""
        self.hessian.addmm_(read.T, read)
        if self.missing is not None and exact is not None:
            self.missing.addmm_((exact - read).T, read)
        self.size += read.abs().sum(0)
        self.peak = torch.maximum(self.peak, read.abs().amax(0)) if len(read) else self.peak
        self.count += len(read)

    def finish(self) -> "InputStatistics":
        """Sums to means; once."""
        for tensor in (self.hessian, self.size, *([] if self.missing is None else [self.missing])):
            tensor /= max(self.count, 1)
        return self


def gather(
    stream: ModelStream, block: Block, y: Tensor, names: Sequence[str], valid: Tensor, against: tuple[Block, Tensor] | None = None
) -> dict[str, InputStatistics]:
    """Of what the named projections of a block read on y [N, T, D], where `valid` [N, T]; `against` an exact block on its x [N, T, D]."""
    found = {name: InputStatistics.empty(linears(block)[name].weight.shape[1], missing=against is not None) for name in names}
    read = stream.inputs(block, y, names)
    other = None if against is None else stream.inputs(*against, names)
    for rows in row_slices(len(y)):
        seen, truth = next(read), None if other is None else next(other)
        for name in names:
            found[name].add(seen[name][valid[rows]], None if truth is None else truth[name][valid[rows]])
    return {name: statistics.finish() for name, statistics in found.items()}
