import itertools
import random

import pytest

from flatlm.quantize.knapsack import GRID_STEPS, Choice, Option, front, within


def random_units(seed: int, count: int, *, largest: int = 900) -> dict[str, list[Option]]:
    draw = random.Random(seed)
    return {
        f"unit{i}": [Option(f"scheme{j}", draw.randint(1, largest), draw.random()) for j in range(draw.randint(1, 4))] for i in range(count)
    }


def every_choice(units: dict[str, list[Option]]) -> list[tuple[int, float]]:
    return [(sum(o.size for o in taken), sum(o.cost for o in taken)) for taken in itertools.product(*units.values())]


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_that_of_brute_force(seed):
    units = random_units(seed, 6)
    everything = every_choice(units)
    found = front(units)  # of so small sizes every byte is a step of its own
    for choice in found:
        assert choice.cost == pytest.approx(min(cost for size, cost in everything if size <= choice.size))
    for size, cost in everything:
        best = within(found, size)
        assert best is not None and best.cost <= cost + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_a_coarse_grid_never_exceeds_the_budget_and_is_near_the_best(seed):
    units = random_units(seed, 8, largest=50_000_000)
    everything = every_choice(units)
    found = front(units)
    spread = max(size for size, _ in everything) - min(size for size, _ in everything)
    slack = (len(units) + 1) * spread / GRID_STEPS
    for budget in (min(s for s, _ in everything) + int(spread * share) for share in (0.1, 0.4, 0.8)):
        best = within(found, budget)
        assert best is not None and best.size <= budget
        assert best.cost <= min(cost for size, cost in everything if size <= budget - slack) + 1e-12


def test_a_choice_adds_up_and_names_every_unit():
    units = random_units(3, 5)
    for choice in front(units):
        taken = [next(o for o in units[name] if o.scheme == scheme) for name, scheme in choice.schemes.items()]
        assert list(choice.schemes) == list(units)
        assert (choice.size, choice.cost) == (sum(o.size for o in taken), pytest.approx(sum(o.cost for o in taken)))


def test_the_front_rises_in_size_and_falls_in_cost():
    found = front(random_units(4, 12))
    assert all(a.size < b.size and a.cost > b.cost for a, b in itertools.pairwise(found))


def test_an_option_that_is_larger_and_worse_is_never_taken():
    units = {"a": [Option("good", 10, 0.1), Option("bad", 20, 0.2)], "b": [Option("only", 5, 0.0)]}
    assert front(units) == [Choice({"a": "good", "b": "only"}, 15, 0.1)]


def test_nothing_fits_a_budget_below_the_smallest():
    assert within(front({"a": [Option("only", 10, 0.0)]}), 9) is None


@pytest.mark.parametrize("units", [{}, {"a": []}])
def test_without_options_there_is_no_front(units):
    with pytest.raises(ValueError, match="option"):
        front(units)
