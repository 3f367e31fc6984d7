"""Files with caches of several lengths, and with a signature that checks several tokens at once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flatlm.convert.signatures import signature_specs
from flatlm.errors import RuntimeFileError
from flatlm.generative.model_file import read_model_file
from flatlm.generative.runner import Runner
from flatlm.layers.config import CacheDtype, LongRopeScaling, RopeConfig
from tests.models import export_fast, random_decoder, tiny_config

IDS = np.random.default_rng(5).integers(0, 96, 60).tolist()
LENGTHS = (16, 32, 64)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Runner, Runner]:
    """Of one model, whose every second layer keeps a ring of 32 slots: files with caches of three lengths, and with the longest alone."""
    folder = tmp_path_factory.mktemp("levels")
    model = random_decoder(tiny_config(window=8), cache_length=64, longest_step=20)
    several = signature_specs((4, 20), prefill_logits=True, verify_length=4, cache_lengths=LENGTHS)
    plain = signature_specs((4, 20), prefill_logits=True)
    return Runner.open(export_fast(model, several, folder / "several.tflite")), Runner.open(
        export_fast(model, plain, folder / "one.tflite")
    )


def test_int8_caches_move_with_their_scales(tmp_path: Path) -> None:
    model = random_decoder(tiny_config(window=8), cache_length=64, longest_step=20, cache=CacheDtype.INT8)
    files = [
        export_fast(model, signature_specs((4,), prefill_logits=False, cache_lengths=lengths), tmp_path / f"{len(lengths)}.tflite")
        for lengths in ((), (16, 64))
    ]
    with Runner.open(files[0]) as one, Runner.open(files[1]) as several:
        for runner in (one, several):
            runner.prefill(IDS[:9])
        for token in IDS[9:]:
            assert np.array_equal(several.step(token), one.step(token))
        assert several.kv_length == 64


def test_factors_of_the_whole_context_hold_in_short_caches_too(tmp_path: Path) -> None:
    """LongRoPE has two sets of factors, by the context's length: a text would change over in the middle."""
    config = tiny_config()
    scaling = LongRopeScaling((1.0, 1.2, 1.4, 1.6), (1.0, 3.0, 5.0, 8.0), 16, 1.1)
    blocks = tuple(replace(block, attention=replace(block.attention, rope=RopeConfig(8, scaling=scaling))) for block in config.blocks)
    model = random_decoder(replace(config, blocks=blocks), cache_length=64, longest_step=4)
    files = [
        export_fast(model, signature_specs((4,), prefill_logits=False, cache_lengths=lengths), tmp_path / f"{len(lengths)}.tflite")
        for lengths in ((), (12, 64))
    ]
    with Runner.open(files[0]) as one, Runner.open(files[1]) as several:
        for token in IDS[:20]:
            np.testing.assert_allclose(several.step(token), one.step(token), atol=1e-5)


@pytest.fixture
def runners(pair: tuple[Runner, Runner]) -> tuple[Runner, Runner]:
    for runner in pair:
        runner.reset()
    return pair


def test_names_and_lengths(runners) -> None:
    several, one = runners
    names = [level.decode.name for level in several.file.levels]
    assert names == ["kv16_decode", "kv32_decode", "decode"]
    assert [[spec.name for spec in level.prefill] for level in several.file.levels] == [
        ["kv16_prefill_4"],
        ["kv32_prefill_4", "kv32_prefill_20"],
        ["prefill_4", "prefill_20"],
    ]
    assert [level.verify and level.verify.name for level in several.file.levels] == ["kv16_verify_4", "kv32_verify_4", "verify_4"]
    assert (several.kv_lengths, several.kv_length, several.cache_length, several.verify_length) == (LENGTHS, 16, 64, 4)
    assert (one.kv_lengths, one.kv_length, one.cache_length, one.verify_length) == ((64,), 64, 64, 1)
    assert several.cache_bytes < one.cache_bytes


def test_a_text_moves_on_to_longer_caches_and_nothing_changes(runners) -> None:
    several, one = runners
    used = set()
    for token in IDS:
        assert np.array_equal(several.step(token), one.step(token))
        used.add(several.kv_length)
        assert several.kv_length == next(length for length in LENGTHS if length >= several.position)
    assert used == set(LENGTHS)
    assert several.cache_bytes == one.cache_bytes
    several.reset()
    assert several.kv_length == 16


@pytest.mark.parametrize("first", [3, 15, 16, 17, 30, 33, 59])
def test_prompts_begin_in_the_shortest_that_they_fit(runners, first: int) -> None:
    several, one = runners
    for runner in runners:
        runner.prefill(IDS[:first])
    assert several.kv_length == next(length for length in LENGTHS if length >= first)
    assert np.allclose(several.step(IDS[first]), one.step(IDS[first]), atol=1e-4)
    assert np.allclose(several.prefill_logits(IDS[first + 1 :]), one.prefill_logits(IDS[first + 1 :]), atol=1e-4)


def test_old_texts_do_not_shine_through(runners) -> None:
    several, one = runners
    several.prefill(IDS)
    several.reset()
    one.prefill(IDS[20:30])
    several.prefill(IDS[20:30])
    for token in IDS[:40]:
        assert np.array_equal(several.step(token), one.step(token))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_sequence_gives_what_one_length_gives(runners, data: st.DataObject) -> None:
    several, one = runners
    for runner in runners:
        runner.reset()
    for _ in range(data.draw(st.integers(2, 8))):
        held = one.position
        what = data.draw(st.sampled_from(["read", "read", "step", "back", "back", "reset"]))
        if what == "back":
            place = data.draw(st.integers(0, held))
            if one.can_rewind(place) and several.can_rewind(place):
                several.rewind(place)
                one.rewind(place)
        elif what == "reset":
            several.reset()
            one.reset()
        else:
            ids = data.draw(st.lists(st.integers(0, 95), min_size=1, max_size=1 if what == "step" else min(40, max(1, 63 - held))))
            if held + len(ids) > 63:
                continue
            several.prefill(ids)
            one.prefill(ids)
        place = one.position
        assert several.position == place
        if place < 64:
            np.testing.assert_allclose(several.step(7), one.step(7), atol=1e-4)


def test_a_short_text_after_a_long_one_goes_back_to_short_caches(runners) -> None:
    several, one = runners
    for runner in runners:
        for token in IDS[:28]:  # no padding, so that no ring has wrapped
            runner.step(token)
        runner.rewind(8)
    assert several.kv_length == 16
    np.testing.assert_allclose(several.step(7), one.step(7), atol=1e-4)


def test_a_ring_that_has_wrapped_stays_where_it_is(runners) -> None:
    """In shorter caches all positions would seem to be there, and the ring has overwritten the first."""
    several, _ = runners
    for token in IDS[:36]:
        several.step(token)
    several.rewind(16)
    assert several.kv_length == 64
    assert not several.can_rewind(6)


def test_rewinding_after_a_move(runners) -> None:
    several, one = runners
    for runner in runners:
        runner.prefill(IDS[:14])
        for token in IDS[14:20]:
            runner.step(token)
        runner.rewind(15)
    assert several.kv_length == 32
    assert np.allclose(several.step(7), one.step(7), atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 4, 5, 9])
def test_verify_gives_the_logits_of_steps(runners, count: int) -> None:
    several, one = runners
    for runner in runners:
        runner.prefill(IDS[:10])
    checked = several.verify(IDS[10 : 10 + count])
    expected = np.stack([one.step(token) for token in IDS[10 : 10 + count]])
    assert checked.shape == (count, 96)
    np.testing.assert_allclose(checked, expected, atol=1e-4)
    several.rewind(11)
    one.rewind(11)
    np.testing.assert_allclose(several.verify(IDS[30:33]), np.stack([one.step(token) for token in IDS[30:33]]), atol=1e-4)


def test_verify_at_the_end_of_the_context_and_without_a_signature(runners) -> None:
    several, one = runners
    for runner in runners:
        runner.prefill([*IDS, 1, 2])
        assert runner.position == 62
    np.testing.assert_allclose(several.verify([5, 6]), one.verify([5, 6]), atol=1e-4)
    with pytest.raises(RuntimeFileError, match="1 tokens do not fit its context of 64"):
        several.verify([7])


def test_siblings_share_weights_and_nothing_else(runners) -> None:
    several, one = runners
    other = several.sibling()
    several.prefill(IDS[:30])
    other.prefill(IDS[40:45])
    one.prefill(IDS[40:45])
    assert np.array_equal(other.step(3), one.step(3))
    one.reset()
    one.prefill(IDS[:30])
    other.copy_from(several)
    assert (other.position, other.kv_length) == (30, 32)
    expected = one.step(9)
    assert np.array_equal(other.step(9), expected)
    other.rewind(25)
    other.step(3)  # over what both had
    other.reset()
    assert np.array_equal(several.step(9), expected)
    with pytest.raises(RuntimeFileError, match="sibling only"):
        several.copy_from(one)


def test_reading_stops_between_calls(runners) -> None:
    several, one = runners
    reading = several.reading(IDS[:45])
    counts = [next(reading)]
    assert several.position == counts[0] < 45
    counts += list(reading)
    assert sum(counts) == several.position == 45
    one.prefill(IDS[:45])
    assert np.allclose(several.step(1), one.step(1), atol=1e-4)


def test_files_whose_caches_do_not_fit_one_another_are_refused(pair, tmp_path: Path) -> None:
    content = pair[0].file.path.read_bytes()
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(content.replace(b"kv16_decode", b"kv99_decode"))
    with pytest.raises(RuntimeFileError, match="kv99_decode must take the same caches as decode does"):
        read_model_file(broken)
