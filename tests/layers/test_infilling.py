"""Where the tokens of a context and of its spans stand, and what they may see."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from flatlm.layers.config import MASKED, MaskConfig
from flatlm.layers.infilling import context_places, span_places
from flatlm.layers.mask import attention_mask


@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 6), st.integers(0, 6))
def test_all_see_the_prefix_and_what_is_not_after_them(prefix: int, first: int, tokens: int, free: int) -> None:
    slots = max(prefix, first + tokens) + free
    positions, told = torch.arange(first, first + tokens, dtype=torch.int32), torch.tensor([prefix], dtype=torch.int32)
    mask = attention_mask(MaskConfig(prefix=True), positions, torch.arange(slots, dtype=torch.int32), told)
    expected = [[0.0 if key < prefix or key <= own else MASKED for key in range(slots)] for own in positions.tolist()]
    assert mask.tolist() == expected


def test_without_a_prefix_it_is_causal() -> None:
    positions = torch.arange(3, dtype=torch.int32)
    causal = attention_mask(MaskConfig(), positions, positions)
    assert attention_mask(MaskConfig(prefix=True), positions, positions).equal(causal)
    assert attention_mask(MaskConfig(), positions, positions, torch.tensor([3], dtype=torch.int32)).equal(causal)


def test_places_are_the_papers() -> None:
    """Figure 2 of Du et al. 2022, counted from 0: a context of five, and the spans of its masks at 4 and 2."""
    context, second, third = context_places(5), span_places(5, 4, (1, 2, 3)), span_places(5, 2, (1, 2))
    rows = torch.cat([context.position_ids, second.position_ids, third.position_ids], 1)
    assert rows.tolist() == [[0, 1, 2, 3, 4, 4, 4, 4, 2, 2], [0, 0, 0, 0, 0, 1, 2, 3, 1, 2]]
    assert [places.prefix.tolist() for places in (context, second, third)] == [[5]] * 3
    assert all(tensor.dtype == torch.int32 for places in (context, second) for tensor in places)
