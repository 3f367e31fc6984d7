import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatlm.errors import RuntimeFileError
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.sampling import Sampler

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15])).astype(np.float32) + 3
arrays = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=60).map(lambda values: np.array(values, np.float32))


def drawing(temperature=0.0, **options):
    return Sampler(GenerationConfig(temperature=temperature, **options))


def shares(sampler, logits=LOGITS, draws=20_000):
    return np.bincount([sampler.pick(logits) for _ in range(draws)], minlength=len(logits)) / draws


def test_greedy_is_the_first_of_the_largest():
    assert Sampler().pick(np.array([1, 5, 2, 5], np.float32)) == 1


def test_draws_by_probability():
    np.testing.assert_allclose(shares(drawing(1.0, seed=0)), [0.1, 0.4, 0.05, 0.3, 0.15], atol=0.01)


def test_temperature_sharpens():
    expected = np.array([0.1, 0.4, 0.05, 0.3, 0.15]) ** 2
    np.testing.assert_allclose(shares(drawing(0.5, seed=0)), expected / expected.sum(), atol=0.01)


def test_top_k_keeps_the_k_most_probable():
    np.testing.assert_allclose(shares(drawing(1.0, top_k=3, seed=0)), np.array([0, 0.4, 0, 0.3, 0.15]) / 0.85, atol=0.01)


def test_top_k_of_equals_keeps_the_first():
    assert set(np.flatnonzero(shares(drawing(1.0, top_k=2, seed=0), np.zeros(5, np.float32), 200))) == {0, 1}


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.3, {1}), (0.5, {1, 3}), (0.69, {1, 3}), (0.75, {1, 3, 4}), (0.94, {0, 1, 3, 4}), (1.0, {0, 1, 2, 3, 4})]
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p, kept):
    probabilities = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
    expected = np.where([i in kept for i in range(5)], probabilities, 0)
    np.testing.assert_allclose(shares(drawing(1.0, top_p=top_p, seed=0)), expected / expected.sum(), atol=0.012)


def test_top_p_of_equals_keeps_the_first():
    logits = np.random.default_rng(0).choice(np.float32([0, -0.01]), 3000)
    sampler = drawing(1.0, top_p=49.5 / np.exp(logits).sum(), seed=0)
    assert set(np.flatnonzero(shares(sampler, logits, 1000))) == set(np.flatnonzero(logits == 0)[:50])


def test_top_p_counts_what_top_k_left():
    # Of 0.4 and 0.3, the first is 0.57 of the whole.
    assert shares(drawing(1.0, top_k=2, top_p=0.5, seed=0), draws=200)[1] == 1


@given(arrays, st.integers(0, 99))
def test_top_k_of_one_and_a_tiny_top_p_are_greedy(logits, seed):
    assert drawing(0.7, top_k=1, seed=seed).pick(logits) == Sampler().pick(logits)
    assert drawing(0.7, top_p=1e-9, seed=seed).pick(logits) == Sampler().pick(logits)


@given(arrays, st.floats(0.01, 0.999), st.floats(0.2, 3))
def test_top_p_never_leaves_the_plain_definition(logits, top_p, temperature):
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    order = np.array(sorted(range(len(logits)), key=lambda token: -logits[token]))
    before = np.cumsum(weights[order]) - weights[order]
    allowed = set(order[before < top_p * weights.sum() * (1 + 1e-9)].tolist())
    sampler = drawing(temperature, top_p=top_p, seed=1)
    assert {sampler.pick(logits) for _ in range(20)} <= allowed


def test_one_seed_one_sequence():
    first, second = drawing(1.0, seed=5), drawing(1.0, seed=5)
    sequence = [first.pick(LOGITS) for _ in range(50)]
    assert sequence == [second.pick(LOGITS) for _ in range(50)]
    assert sequence != [drawing(1.0, seed=6).pick(LOGITS) for _ in range(50)]
    assert sequence[:12] == [3, 3, 2, 1, 0, 1, 1, 0, 0, 4, 3, 1]  # on every machine


def test_large_logits_do_not_overflow():
    assert drawing(0.01, seed=0).pick(np.array([3e38, -3e38, 0], np.float32)) == 0


def test_minus_infinity_is_never_drawn():
    class Zero:
        def random(self):
            return 0.0

    sampler = drawing(1.0)
    sampler._random = Zero()
    assert sampler.pick(np.array([-np.inf, 0, 0], np.float32)) == 1
    assert shares(drawing(1.0, seed=0), np.array([-np.inf, 0, 0], np.float32), 200)[0] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_not_finite(bad, temperature):
    with pytest.raises(RuntimeFileError, match=r"not finite: (nan|inf) for token 2"):
        drawing(temperature).pick(np.array([1, 2, bad], np.float32))
    with pytest.raises(RuntimeFileError, match="not finite"):
        drawing(temperature).pick(np.full(3, -np.inf, np.float32))


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1}, {"temperature": np.nan}, {"temperature": np.inf}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.1}, {"seed": -1}],
)
def test_impossible_options_are_named(options):
    (name,) = options
    with pytest.raises(RuntimeFileError, match=rf"{name} .* is not possible"):
        drawing(**options)
