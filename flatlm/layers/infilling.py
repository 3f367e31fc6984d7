"""Where the tokens of a model that fills blanks stand (GLM; Du et al. 2022, section 2.1).

A text is its context, in which each blank is one mask token, and then the blanks' answers, span after span. `input_pos` counts all tokens
in the order in which they are read; it says which slot of the cache is whose, and what a token of a span may see. What the model is told
of their places are two rows of positions: a token of the context has its own place and 0; one of a span has the place of its mask, and its
number within the span, from 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Places(NamedTuple):
    """A step's places: `position_ids` [2, T] int32, both rows; `prefix` [1] int32, the context's length, whose tokens all may see."""

    position_ids: Tensor
    prefix: Tensor


def context_places(tokens: int) -> Places:
    """Of a whole context of so many tokens."""
    own = torch.arange(tokens, dtype=torch.int32)
    return Places(torch.stack([own, torch.zeros_like(own)]), torch.tensor([tokens], dtype=torch.int32))


def span_places(context: int, mask: int, numbers: Sequence[int]) -> Places:
    """Of tokens of a span whose mask is at `mask` of a context of so many tokens; `numbers` within the span, the first is 1."""
    within = torch.tensor(list(numbers), dtype=torch.int32)
    return Places(torch.stack([torch.full_like(within, mask), within]), torch.tensor([context], dtype=torch.int32))
