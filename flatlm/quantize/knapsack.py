"""Which scheme for which weights: the multiple-choice knapsack, solved by dynamic programming.

Every unit (weights that get one scheme together) offers options, each with a size and a cost; one option of each is taken so that the
sum of costs is least while the sum of sizes stays within a budget (Kellerer, Pferschy and Pisinger 2004, chapter 11). Sizes are counted
in steps of the range between the smallest and the largest sum, rounded up: a solution never exceeds its budget, and may miss a better one
that is nearer to it than the roundings add up to, GRID_STEPS being many more than there are units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

GRID_STEPS = 1 << 14


@dataclass(frozen=True, slots=True)
class Option:
    """`size` in bytes; `cost` of any unit that adds up, such as KL in nats."""

    scheme: str
    size: int
    cost: float


@dataclass(frozen=True, slots=True)
class Choice:
    """An option for every unit, by the unit's name, and their sums."""

    schemes: Mapping[str, str]
    size: int
    cost: float


def front(units: Mapping[str, Sequence[Option]]) -> list[Choice]:
    """The Pareto front, from the smallest choice on, each costing less than all smaller ones. ValueError without units or options."""
    if not units or not all(units.values()):
        raise ValueError("a knapsack needs units, and each of them an option")
    least = {name: min(option.size for option in options) for name, options in units.items()}
    spread = sum(max(option.size for option in options) - least[name] for name, options in units.items())
    step = max(1, -(-spread // GRID_STEPS))
    steps = -(-spread // step) + len(units)
    best = np.zeros(steps + 1)
    taken = np.empty((len(units), steps + 1), np.int16)
    widths = []
    for row, (name, options) in enumerate(units.items()):
        own = [-(-(option.size - least[name]) // step) for option in options]
        widths.append(own)
        costs = np.full((len(options), steps + 1), np.inf)
        for index, (width, option) in enumerate(zip(own, options, strict=True)):
            costs[index, width:] = best[: steps + 1 - width] + option.cost
        taken[row] = costs.argmin(0)
        best = costs.min(0)
    found: list[Choice] = []
    for room in range(steps + 1):
        if not found or best[room] < best[room - 1] - 1e-12:
            choice = _trace(units, taken, widths, room)
            if not found or choice.cost < found[-1].cost - 1e-12:
                while found and found[-1].size >= choice.size:
                    found.pop()
                found.append(choice)
    return found


def within(choices: Sequence[Choice], size: int) -> Choice | None:
    """The cheapest choice of a front whose size is at most `size`; None where all are larger."""
    fitting = [choice for choice in choices if choice.size <= size]
    return min(fitting, key=lambda choice: choice.cost, default=None)


def _trace(
    units: Mapping[str, Sequence[Option]], taken: "np.ndarray[tuple[int, int], np.dtype[np.int16]]", widths: list[list[int]], room: int
) -> Choice:
    schemes: dict[str, str] = {}
    size, cost = 0, 0.0
    for row, (name, options) in reversed(list(enumerate(units.items()))):
        index = int(taken[row, room])
        schemes[name] = options[index].scheme
        size, cost = size + options[index].size, cost + options[index].cost
        room -= widths[row][index]
    return Choice({name: schemes[name] for name in units}, size, cost)
