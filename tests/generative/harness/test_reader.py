"""Texts that begin alike, read by one runner: the logits of each are those of reading it by itself, and less is read."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from flatlm.convert.signatures import signature_specs
from flatlm.errors import RuntimeFileError
from flatlm.generative.harness.reader import PrefixReader
from flatlm.generative.runner import Runner
from tests.generative.toy_model import S, Toy, V
from tests.models import export_fast, random_decoder, tiny_config


class CountingRunner(Runner):
    """Counts the tokens that it reads."""

    tokens = 0

    def _read(self, ids, prefill):
        self.tokens += len(ids)
        return super()._read(ids, prefill)


@pytest.fixture(params=["prefill", "decode"])
def toy_and_runner(request: pytest.FixtureRequest, toy: Toy, tiny_file: Path, scoring_toy: Toy, scoring_file: Path) -> tuple[Toy, Runner]:
    """Files with and without prefill signatures that give logits."""
    found, file = (scoring_toy, scoring_file) if request.param == "prefill" else (toy, tiny_file)
    return found, CountingRunner.open(file)


def texts(seed: int, count: int, longest: int, vocab: int = V) -> list[list[int]]:
    """Of any length; most go on from a part of another."""
    draw = random.Random(seed)
    found: list[list[int]] = []
    for _ in range(count):
        begin = draw.choice(found)[: draw.randrange(longest)] if found and draw.random() < 0.8 else []
        found.append([*begin, *(draw.randrange(vocab) for _ in range(draw.randrange(1, longest + 1 - len(begin))))])
    return found


def all_logits(reader: PrefixReader, ids: Sequence[int], wanted: int) -> np.ndarray:
    return np.concatenate(list(reader.logits(ids, wanted)))


@pytest.mark.parametrize("ordered", [True, False])
def test_each_text_is_as_if_read_alone(toy_and_runner, ordered) -> None:
    toy, runner = toy_and_runner
    reader = PrefixReader(runner)
    cases = texts(3, 40, S)
    for number, ids in enumerate(sorted(cases) if ordered else cases):
        wanted = 1 + number % len(ids)
        np.testing.assert_allclose(all_logits(reader, ids, wanted), toy.reference(ids)[-wanted:], atol=2e-5)
    alone = sum(len(ids) for ids in cases)
    assert runner.tokens < alone * 0.85 if ordered else runner.tokens < alone


def test_choices_read_their_context_once(toy_and_runner) -> None:
    toy, runner = toy_and_runner
    reader = PrefixReader(runner)
    context = [9 + i % 20 for i in range(30)]
    for last in range(4):
        all_logits(reader, [*context, last, last], 3)
    assert runner.tokens == 32 + 3 * 3
    assert reader.scores_by_prefill == toy.prefill_logits


def test_an_answer_after_a_prompt_and_a_text_after_the_answer(toy_and_runner) -> None:
    toy, runner = toy_and_runner
    reader = PrefixReader(runner)
    prompt = [11, 12, 13, 14, 15]
    for _ in range(2):
        np.testing.assert_allclose(reader.begin(prompt), toy.reference(prompt)[-1], atol=2e-5)
        np.testing.assert_allclose(reader.step(20), toy.reference([*prompt, 20])[-1], atol=2e-5)
    np.testing.assert_allclose(all_logits(reader, [*prompt, 20, 21], 2), toy.reference([*prompt, 20, 21])[-2:], atol=2e-5)
    assert runner.tokens == 5 + 1 + 1 + 1 + 2


def test_after_a_failure_nothing_is_taken_as_read(toy_and_runner) -> None:
    toy, runner = toy_and_runner
    reader = PrefixReader(runner)
    ids = [9] * 20
    all_logits(reader, ids, 1)
    with pytest.raises(RuntimeFileError, match="outside its vocabulary"):
        all_logits(reader, [*ids, *ids, V], 40)
    with pytest.raises(RuntimeFileError, match="do not fit its context"):
        all_logits(reader, [9] * (S + 1), S + 1)
    np.testing.assert_allclose(all_logits(reader, ids, 20), toy.reference(ids), atol=2e-5)


def test_a_ring_is_not_asked_for_what_it_lost(tmp_path: Path) -> None:
    """Prefill calls that were padded wrote further than their last token; what the window needs before it is gone."""
    model = random_decoder(tiny_config(window=17), cache_length=64, longest_step=16)  # whose ring has no slot to spare
    file = export_fast(model, signature_specs((16,), prefill_logits=True), tmp_path / "ring.tflite")
    with CountingRunner.open(file) as runner, Runner.open(file) as alone:
        assert runner.file.shortest_cache < runner.cache_length
        reader = PrefixReader(runner)
        cases = texts(4, 60, 64, 96)
        for number, ids in enumerate(cases):
            wanted = 1 + number % min(len(ids), 20)
            alone.reset()
            expected = alone.prefill_logits(ids)[-wanted:]
            np.testing.assert_allclose(all_logits(reader, ids, wanted), expected, atol=1e-4, err_msg=str(number))
        assert runner.tokens < sum(len(ids) for ids in cases)
