import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlm.generative.comparison.ratios import LEAST_ROUNDS, Ratio, interval_rank


@pytest.mark.parametrize(
    ("count", "rank"),
    [
        (0, 0),
        (1, 0),
        (5, 0),
        (6, 1),
        (7, 1),
        (8, 1),
        (9, 2),
        (11, 2),
        (12, 3),
        (15, 4),
        (17, 5),
        (20, 6),
        (25, 8),
        (31, 10),
        (50, 18),
        (100, 40),
    ],
)
def test_ranks(count, rank):
    """Of the sign test's table at 5 %, two-sided."""
    assert interval_rank(count) == rank
    assert (rank > 0) == (count >= LEAST_ROUNDS)


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=60))
def test_the_same_as_scipys(values):
    stats = pytest.importorskip("scipy.stats")
    ratio = Ratio.of(values, [1.0] * len(values))
    interval = stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    assert ratio.median == np.median(values)
    expected = [None if np.isnan(bound) else bound for bound in (interval.low, interval.high)]
    if len(values) < LEAST_ROUNDS:
        assert (ratio.low, ratio.high) == (None, None)
    else:
        assert [ratio.low, ratio.high] == expected


def test_pairs_and_not_the_sides_are_compared():
    """The machine slows down threefold in the middle; every round's ratio is 2 all the same."""
    firsts = [10.0] * 5 + [30.0] * 5
    ratio = Ratio.of([2 * value for value in firsts], firsts)
    assert ratio == Ratio(2.0, 2.0, 2.0, 10)
    assert ratio.distinguishable and ratio.half_width == 0


def test_one_bad_round_of_nine_changes_little():
    values = [1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07, 1.08, 9.0]
    assert Ratio.of(values, [1.0] * 9) == Ratio(1.05, 1.02, 1.08, 9)


@pytest.mark.parametrize(
    ("values", "shown"),
    [([0.9, 0.99, 1.0, 1.01, 1.02, 1.03], False), ([1.01] * 6, True), ([0.5] * 5, False), ([0.99] * 6, True), ([1.0] * 20, False)],
)
def test_a_difference_is_shown_where_the_interval_leaves_out_1(values, shown):
    assert Ratio.of(values, [1.0] * len(values)).distinguishable is shown


def test_without_an_interval_its_width_is_infinite():
    assert Ratio.of([1.0] * 5, [1.0] * 5).half_width == float("inf")


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), count=st.sampled_from([7, 9, 15]))
def test_it_covers_the_median_of_a_skewed_distribution(seed, count):
    """At least 95 % of the time; what a percentile bootstrap of so few misses."""
    samples = np.exp(np.random.default_rng(seed).exponential(1.0, (3000, count)))
    truth = 2.0  # exp of the exponential's median, log 2
    rank = interval_rank(count)
    ordered = np.sort(samples, axis=1)
    covered = np.mean((ordered[:, rank - 1] <= truth) & (truth <= ordered[:, -rank]))
    assert covered > 0.95 - 3 * (0.05 * 0.95 / 3000) ** 0.5
