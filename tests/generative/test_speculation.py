"""A text that is written with a draft is the target's own, whatever the draft proposes."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flatlm.convert.signatures import signature_specs
from flatlm.errors import RuntimeFileError
from flatlm.generative.beginnings import common_tokens
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.runner import Runner
from flatlm.generative.sampling import Sampler
from flatlm.generative.speculation import SpeculativeRunner
from tests.models import export_fast, random_decoder, tiny_config

PROMPT = np.random.default_rng(5).integers(0, 96, 12).tolist()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Runner]:
    """A target with a ring of 32 slots in a context of 64, which checks 4 tokens at once; drafts; what cannot be one."""
    folder = tmp_path_factory.mktemp("speculation")
    config = tiny_config(window=8)
    target = export_fast(
        random_decoder(config, cache_length=64, longest_step=16),
        signature_specs((4, 16), prefill_logits=False, verify_length=4),
        folder / "target.tflite",
    )
    plain = signature_specs((8,), prefill_logits=False)
    other = export_fast(random_decoder(tiny_config(), cache_length=24, seed=3), plain, folder / "other.tflite")
    foreign = export_fast(random_decoder(tiny_config(vocab=80), cache_length=32), plain, folder / "foreign.tflite")
    return {"target": Runner.open(target), "other": Runner.open(other), "foreign": Runner.open(foreign)}


@pytest.fixture(params=["itself", "other"])
def speculative(files, request: pytest.FixtureRequest) -> SpeculativeRunner:
    """With the target itself as its draft, which is always right; with another model, which hardly ever is and has a context of 24."""
    draft = files["target"].sibling() if request.param == "itself" else files["other"].sibling()
    return SpeculativeRunner(files["target"].sibling(), draft)


def write(runner, prompt: list[int], count: int, pick: Callable[[np.ndarray], int]) -> tuple[list[int], list[np.ndarray]]:
    runner.prefill(prompt[:-1])
    tokens, logits = [prompt[-1]], []
    for _ in range(count):
        logits.append(runner.step(tokens[-1]))
        tokens.append(pick(logits[-1]))
    return tokens[1:], logits


def test_greedy_texts_are_the_same_to_the_end_of_the_context(files, speculative: SpeculativeRunner) -> None:
    alone = files["target"].sibling()
    expected = write(alone, PROMPT, 53, lambda row: int(row.argmax()))
    found = write(speculative, PROMPT, 53, lambda row: int(row.argmax()))
    assert found[0] == expected[0]
    np.testing.assert_allclose(found[1], expected[1], atol=1e-4)
    assert speculative.position == alone.position == speculative.cache_length
    with pytest.raises(RuntimeFileError, match="do not fit its context"):
        speculative.step(1)


def test_sampled_texts_are_the_same_for_a_seed(files, speculative: SpeculativeRunner) -> None:
    expected, _ = write(files["target"].sibling(), PROMPT, 40, Sampler(GenerationConfig(temperature=1.0, seed=7)).pick)
    found, _ = write(speculative, PROMPT, 40, Sampler(GenerationConfig(temperature=1.0, seed=7)).pick)
    assert found == expected


def test_a_draft_that_is_always_right_saves_three_calls_of_four(files) -> None:
    runner = SpeculativeRunner(files["target"].sibling(), files["target"].sibling())
    write(runner, PROMPT, 40, lambda row: int(row.argmax()))
    counts = runner.counts
    assert (counts.tokens, counts.target_calls, counts.proposed, counts.accepted) == (40, 10, 30, 30)
    assert counts.acceptance == 1.0


def test_calls_are_counted_as_they_are_made(files, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the end of the context, where no call of four has room any more."""
    calls: list[str] = []
    real = Runner._call
    target = files["target"].sibling()
    runner = SpeculativeRunner(target, files["other"].sibling())
    runner.prefill(PROMPT[:-1])
    monkeypatch.setattr(Runner, "_call", lambda self, spec, ids: (self is target and calls.append(spec.name), real(self, spec, ids))[1])
    token = PROMPT[-1]
    for _ in range(53):
        token = int(runner.step(token).argmax())
    assert runner.counts.target_calls == len(calls)
    assert set(calls) == {"verify_4", "decode"}


def test_the_draft_reads_nothing_twice(files, monkeypatch: pytest.MonkeyPatch) -> None:
    draft, read = files["target"].sibling(), [0]
    runner = SpeculativeRunner(files["target"].sibling(), draft)
    real = Runner._call
    monkeypatch.setattr(
        Runner, "_call", lambda self, spec, ids: (read.append(len(ids)) if self is draft else None, real(self, spec, ids))[1]
    )
    write(runner, PROMPT, 40, lambda row: int(row.argmax()))
    assert sum(read) <= len(PROMPT) + 40


def test_a_draft_that_is_never_right_saves_none(files) -> None:
    target = files["target"].sibling()
    runner = SpeculativeRunner(target, files["other"].sibling())
    write(runner, PROMPT, 10, lambda row: int(np.argsort(row)[3]))  # what no draft would propose
    assert runner.counts.acceptance is not None and runner.counts.acceptance < 0.2
    assert runner.counts.tokens == 10 >= runner.counts.target_calls >= 8


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mix_of_reading_steps_and_going_back(files, speculative: SpeculativeRunner, data: st.DataObject) -> None:
    alone = files["target"].sibling()
    speculative.reset()
    held: list[int] = []
    guess = 0
    for _ in range(data.draw(st.integers(2, 8))):
        what = data.draw(st.sampled_from(["read", "step", "follow", "back", "take over"]))
        if what == "back":
            place = data.draw(st.integers(0, len(held)))
            if not (alone.can_rewind(place) and speculative.can_rewind(place)):
                continue
            alone.rewind(place)
            speculative.rewind(place)
            del held[place:]
            continue
        if what == "take over":
            other = speculative.sibling()
            other.copy_from(speculative)
            speculative = other
            continue
        count = 1 if what != "read" else data.draw(st.integers(1, 9))
        if len(held) + count > 60:
            continue
        ids = [guess] if what == "follow" else [data.draw(st.integers(0, 95)) for _ in range(count)]
        if what == "read":
            alone.prefill(ids)
            speculative.prefill(ids)
        else:
            row = alone.step(ids[0])
            np.testing.assert_allclose(speculative.step(ids[0]), row, atol=1e-4)
            guess = int(row.argmax())
        held += ids
        assert speculative.position == alone.position == len(held)


def test_what_cannot_be_a_draft(files) -> None:
    with pytest.raises(RuntimeFileError, match=r"other.tflite has no signature that checks a draft: export it with --verify-len 4"):
        SpeculativeRunner(files["other"], files["target"])
    with pytest.raises(RuntimeFileError, match=r"its vocabulary has 80 tokens, not 96"):
        SpeculativeRunner(files["target"], files["foreign"])


@pytest.mark.parametrize("length", [0, 3, 16, 17, 40])
def test_common_beginnings(length: int) -> None:
    text = list(range(40))
    assert common_tokens(text, text[:length]) == length
    assert common_tokens(text, [*text[:length], -1, *text[length + 1 :]]) == length
