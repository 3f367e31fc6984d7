import pytest

from flatlm.generative.benchmarking.steadiness import middle_half, unsteady


@pytest.mark.parametrize(
    ("times", "span"),
    [
        ([], 0),
        ([1, 2, 3, 4], 0),
        ([2.0] * 5, 0),
        ([5, 1, 4, 2, 3], 2 / 3),
        ([10, 10, 10, 10, 99], 0),  # one bad run is in the maximum, and nowhere else
        ([9, 9, 10, 10, 11, 11, 11], 1.5 / 10),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], 4 / 5),
    ],
)
def test_the_middle_half(times, span):
    assert middle_half(times) == pytest.approx(span)


def test_only_the_worst_is_told():
    steady, shaky, worse = [1.0] * 9, [1.0, 1.0, 1.0, 1.2, 1.2, 1.2], [2.0, 2.0, 3.0, 4.0, 4.0]
    assert unsteady({}, "runs") == unsteady({"decode": steady, "prefill": [1.0, 9.0]}, "runs") == ()
    (clause,) = unsteady({"decode": steady, "prefill": worse, "load": shaky}, "rounds")
    assert clause == "the rounds were unsteady: the middle half of 5 times of prefill spans 67% of their median"


@pytest.mark.parametrize(("width", "told"), [(0.099, False), (0.101, True)])
def test_a_tenth_is_the_limit(width, told):
    assert bool(unsteady({"decode": [1 - width / 2, 1 - width / 2, 1.0, 1 + width / 2, 1 + width / 2]}, "runs")) is told
