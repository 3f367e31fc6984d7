"""`Linear` and `Embedding`: ordinary torch in eager mode, weight-free calls while exporting."""

import torch
import torch.nn.functional as F  # the field's own name for it
from torch import Tensor, nn

from flatlm.layers import ops


class Linear(ops.Named):
    """y [..., out] = x [..., in] @ weight [out, in].T + bias [out]."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.out_features = out_features
        self.tied_to: str | None = None  # the path of the layer whose weight this one shares
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if ops.is_exporting():
            bias = "" if self.bias is None else f"{self.path}.bias"
            out: Tensor = ops.linear(x, f"{self.tied_to or self.path}.weight", bias, self.out_features)
            return out
        return F.linear(x, self.weight, self.bias)


class Embedding(ops.Named):
    """Rows of weight [V, D] for tokens [B, T] int32: [B, T, D]."""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        if ops.is_exporting():
            # The runtime's EMBEDDING_LOOKUP takes one-dimensional ids.
            rows: Tensor = ops.embedding(tokens.reshape(-1), f"{self.path}.weight", self.dim)
            return rows.reshape(*tokens.shape, self.dim)
        return F.embedding(tokens, self.weight)
