import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlm.errors import RuntimeFileError
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.sampling import Sampler

LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15])).astype(np.float32) + 3
arrays = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=60).map(lambda values: np.array(values, np.float32))

untimed = settings(deadline=None)


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


@untimed
@given(arrays, st.integers(0, 99))
def test_top_k_of_one_and_a_tiny_top_p_are_greedy(logits, seed):
    assert drawing(0.7, top_k=1, seed=seed).pick(logits) == Sampler().pick(logits)
    assert drawing(0.7, top_p=1e-9, seed=seed).pick(logits) == Sampler().pick(logits)


@untimed
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


def after(made, logits, prompt=(), **options):
    """The logits as they are once these tokens were made."""
    sampler = Sampler(GenerationConfig(**options), prompt)
    sampler.pick(logits)
    for token in made:
        sampler.accept(token)
    return sampler._adjusted(logits, None)


def test_presence_and_frequency_are_taken_off_as_openai_documents_it():
    logits = np.array([1, 2, 3, -4], np.float32)
    changed = after([2, 1, 2], logits, presence_penalty=0.5, frequency_penalty=0.25)
    np.testing.assert_allclose(changed, [1, 2 - 0.5 - 0.25, 3 - 0.5 - 0.5, -4])
    np.testing.assert_allclose(after([3], logits, presence_penalty=-1.0), [1, 2, 3, -3])
    np.testing.assert_allclose(after([], logits, prompt=[0, 1], presence_penalty=1.0, frequency_penalty=1.0), logits)  # not the prompt's


def test_repetition_makes_tokens_of_prompt_and_answer_less_probable():
    logits = np.array([1, 2, 3, -4], np.float32)
    np.testing.assert_allclose(after([3, 3], logits, prompt=[1, 1], repetition_penalty=2.0), [1, 1, 3, -8])
    np.testing.assert_allclose(after([3], logits, prompt=[1], repetition_penalty=0.5), [1, 4, 3, -2])


def test_penalties_come_before_the_bias_and_after_repetition():
    changed = after([1], np.array([1, 4], np.float32), repetition_penalty=2.0, presence_penalty=0.5, logit_bias={1: 3.0, 0: -1.0})
    np.testing.assert_allclose(changed, [0, 4 / 2 - 0.5 + 3])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_penalty_changes_what_is_picked(temperature):
    sampler = drawing(temperature, presence_penalty=2.0, frequency_penalty=2.0, seed=0)
    logits, made = np.array([0.3, 0.2, 0.1, 0], np.float32), []
    for _ in range(200):
        made.append(sampler.pick(logits))
        sampler.accept(made[-1])
    assert set(np.bincount(made)) <= {49, 50, 51}  # however it is drawn, no token gets far ahead
    assert temperature or made[:5] == [0, 1, 2, 3, 0]


def test_the_logits_that_were_given_are_not_changed():
    logits = LOGITS.copy()
    sampler = drawing(1.0, presence_penalty=1.0, repetition_penalty=1.5, logit_bias={1: 2.0}, seed=1)
    for _ in range(3):
        sampler.accept(sampler.pick(logits, np.array([True, True, False, True, True])))
    np.testing.assert_array_equal(logits, LOGITS)


@pytest.mark.parametrize(("min_p", "kept"), [(0.2, {0, 1, 3, 4}), (0.26, {1, 3, 4}), (0.5, {1, 3}), (1.0, {1}), (0.0, {0, 1, 2, 3, 4})])
def test_min_p_keeps_a_part_of_the_largest_probability(min_p, kept):
    probabilities = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
    expected = np.where([i in kept for i in range(5)], probabilities, 0)
    np.testing.assert_allclose(shares(drawing(1.0, min_p=min_p, seed=0)), expected / expected.sum(), atol=0.012)
    assert shares(drawing(1.0, min_p=0.26, top_k=4, top_p=0.7, seed=0), draws=200)[4] == 0


@pytest.mark.parametrize("options", [{}, {"presence_penalty": 1.0}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 1}])
def test_only_what_is_allowed_is_picked(options):
    sampler = Sampler(GenerationConfig(seed=0, **options))
    for allowed in ({0, 2}, {1}, {2}, {4, 0}):
        mask = np.array([token in allowed for token in range(5)])
        picked = {sampler.pick(LOGITS, mask) for _ in range(30)}
        assert picked <= allowed
        if "temperature" not in options:
            assert picked == {max(allowed, key=lambda token: LOGITS[token])}


def test_allowed_tokens_without_a_probability():
    with pytest.raises(RuntimeFileError, match="no token that the grammar allows"):
        Sampler().pick(np.array([0, -np.inf], np.float32), np.array([False, True]))


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1.0])
@pytest.mark.parametrize("penalty", [5e-324, 100.0])
def test_extremes_are_no_fault(temperature, penalty):
    """What is divided by next to nothing is as large as can be, not infinite, of which a difference is no number."""
    sampler = Sampler(GenerationConfig(temperature=temperature, repetition_penalty=penalty, seed=0), prompt_ids=[1, 2])
    with np.errstate(all="raise", under="ignore"):
        picked = sampler.pick(np.array([0.1, 3, -2, 0.2], np.float32))
    assert picked == 1 or penalty > 1
