"""Activations of gated feed-forwards (Shazeer 2020), over a merged [gate | up]."""

from typing import Any

import torch.nn.functional as F  # the field's own name for it
from torch import Tensor, nn

from flatlm.authoring.modules.keywords import refuse_unknown


class SiluAndMul(nn.Module):
    """From x [..., 2F]: silu of its first half times its second, [..., F]. `inplace` means nothing here."""

    def __init__(self, inplace: bool = True, **keywords: Any) -> None:
        super().__init__()
        refuse_unknown(SiluAndMul, keywords)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up


class GeluAndMul(nn.Module):
    """From x [..., 2F]: gelu of its first half times its second, [..., F]. `approximate`: "none" or "tanh"."""

    def __init__(self, approximate: str = "none", **keywords: Any) -> None:
        super().__init__()
        refuse_unknown(GeluAndMul, keywords)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.gelu(gate, approximate=self.approximate) * up
