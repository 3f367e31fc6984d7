"""What two texts begin with, as tokens: what one that was read spares the other."""

from collections.abc import Sequence
from itertools import takewhile


def common_tokens(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with. Quick where they differ near their ends."""
    sure = max(0, min(len(a), len(b)) - 16)
    if list(a[:sure]) != list(b[:sure]):
        sure = 0
    return sure + sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a[sure:], b[sure:], strict=False)))
