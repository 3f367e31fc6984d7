"""The figures of a verification, on distributions whose figures are known."""

import math

import numpy as np
import pytest

from flatlm.generative.evaluation.divergence import kl_divergence
from flatlm.generative.verify import Tally
from flatlm.quantize.recipes import Bound


def logits(*probabilities: float) -> np.ndarray:
    return np.log(np.array(probabilities, np.float32)) + 7  # logits are known up to a constant


def test_kl_divergence_in_nats() -> None:
    assert kl_divergence(logits(0.5, 0.25, 0.25), logits(0.25, 0.5, 0.25)) == pytest.approx(0.25 * math.log(2), abs=1e-6)
    assert kl_divergence(logits(0.9, 0.1), logits(0.9, 0.1)) == 0
    assert kl_divergence(logits(0.9, 0.1), logits(0.1, 0.9)) > kl_divergence(logits(0.9, 0.1), logits(0.6, 0.4)) > 0


def test_a_tally_counts_what_it_says() -> None:
    tally = Tally()
    tally.add(logits(0.5, 0.3, 0.2), logits(0.5, 0.3, 0.2))
    tally.add(logits(0.5, 0.3, 0.2), logits(0.3, 0.5, 0.2))
    tally.add(logits(0.5, 0.3, 0.2), logits(0.5, 0.2, 0.3))
    assert (tally.tokens, tally.agreed) == (3, 2)
    assert tally.max_abs_error == pytest.approx(math.log(5 / 3), abs=1e-5)
    assert tally.within(Bound())
    assert tally.within(Bound(max_abs_error=0.52, mean_kl=0.06, top1_agreement=0.66))
    for bound in (Bound(max_abs_error=0.5), Bound(mean_kl=0.01), Bound(top1_agreement=0.7)):
        assert not tally.within(bound)


def test_what_is_not_finite_passes_no_bound() -> None:
    tally = Tally()
    tally.add(logits(0.5, 0.5), np.array([np.nan, 0.0], np.float32))
    assert not tally.within(Bound())
