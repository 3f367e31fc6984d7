"""Were repeated measurements alike? What no counter of a machine shows, a neighbour of a virtual one or a clock that changes, they do."""

from collections.abc import Mapping, Sequence
from statistics import quantiles

UNSTEADY_SHARE = 0.1
"""Of the median, that the middle half may span. On an idle board or desktop it is 1 to 3 %; where it is more than 10 %, the median of
some dozen runs is off by some percent itself, which is more than two measurements may differ."""
LEAST_RUNS = 5
"""Fewer tell no middle half."""


def middle_half(values: Sequence[float]) -> float:
    """From the first quartile to the third, as a part of the median; 0 of too few values to tell."""
    if len(values) < LEAST_RUNS:
        return 0.0
    low, middle, high = quantiles(values, method="inclusive")
    return (high - low) / middle


def unsteady(times: Mapping[str, Sequence[float]], what: str) -> tuple[str, ...]:
    """One clause about the unsteadiest of several series, by their names; empty where all were steady.

    `what`: the plural of what gave each value, such as `runs`.
    """
    spans = {name: middle_half(values) for name, values in times.items()}
    worst = max(spans, key=lambda name: spans[name], default=None)
    if worst is None or spans[worst] <= UNSTEADY_SHARE:
        return ()
    return (f"the {what} were unsteady: the middle half of {len(times[worst])} times of {worst} spans {spans[worst]:.0%} of their median",)
