"""RMS norm, alone or behind the residual sum."""

from typing import Any

import torch
from torch import Tensor, nn

from flatlm.authoring.modules.keywords import refuse_unknown


class RMSNorm(nn.Module):
    """x [..., D] normalised by its root mean square, times weight [D] (Zhang and Sennrich 2019, equation 4). Computed in float32."""

    def __init__(self, hidden_size: int, eps: float = 1e-6, dtype: torch.dtype | None = None, **keywords: Any) -> None:
        super().__init__()
        refuse_unknown(RMSNorm, keywords)
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(hidden_size, dtype=dtype))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        """The norm of x; with a `residual`, the norm of their sum, and that sum."""
        total = x if residual is None else x + residual
        normed = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight
        return normed if residual is None else (normed, total)
