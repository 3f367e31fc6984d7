import subprocess
import sys
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flatlm.convert.signatures import signature_specs
from flatlm.errors import RuntimeFileError
from flatlm.generative.loading import available_cores
from flatlm.generative.runner import Runner
from flatlm.generative.signature_calls import split
from tests.generative.toy_model import S, V
from tests.models import export_fast, random_decoder, tiny_config

TOLERANCE = 1e-5
texts = st.lists(st.integers(0, V - 1), min_size=1, max_size=S)
relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def scorer(scoring_file):
    return Runner.open(scoring_file)


def test_describes_the_file(runner):
    assert (runner.vocab_size, runner.cache_length, runner.prefill_lengths, runner.position) == (V, S, (4, 16), 0)


@relaxed
@given(ids=texts)
def test_prompt_of_any_length_gives_the_same_logits_as_the_whole_text_at_once(runner, toy, ids):
    runner.reset()
    runner.prefill(ids[:-1])
    assert runner.position == len(ids) - 1
    np.testing.assert_allclose(runner.step(ids[-1]), toy.reference(ids)[-1], atol=TOLERANCE)
    assert runner.position == len(ids)


@relaxed
@given(ids=texts, cuts=st.sets(st.integers(1, S - 1)), stale=texts)
def test_text_read_in_parts_over_the_garbage_of_another(runner, toy, ids, cuts, stale):
    runner.rewind(0)
    runner.prefill(stale)
    runner.rewind(0)  # unlike reset, this leaves all of it in the cache
    expected = toy.reference(ids)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(ids)), len(ids)]
    for begin, end in pairwise(bounds):
        runner.prefill(ids[begin : end - 1])
        np.testing.assert_allclose(runner.step(ids[end - 1]), expected[end - 1], atol=TOLERANCE)


@relaxed
@given(ids=texts, shared=st.integers(0, S), other=texts)
def test_rewind_keeps_the_tokens_before_the_position(runner, toy, ids, shared, other):
    runner.reset()
    runner.prefill(ids)
    runner.rewind(min(shared, len(ids)))
    text = (ids[:shared] + other)[:S]
    runner.rewind(min(runner.position, len(text) - 1))
    runner.prefill(text[runner.position : -1])
    np.testing.assert_allclose(runner.step(text[-1]), toy.reference(text)[-1], atol=TOLERANCE)


def test_every_step_to_the_last_slot(runner, toy, random_ids):
    ids = random_ids(S)
    logits = np.stack([runner.step(token) for token in ids])
    np.testing.assert_allclose(logits, toy.reference(ids), atol=TOLERANCE)


@pytest.mark.parametrize("read", range(S - 20, S))
def test_a_prefill_near_the_end_is_not_moved_back_onto_older_tokens(runner, toy, random_ids, read):
    ids = random_ids(S, seed=read)
    runner.prefill(ids[:read])
    runner.prefill(ids[read:-1])
    np.testing.assert_allclose(runner.step(ids[-1]), toy.reference(ids)[-1], atol=TOLERANCE)


def test_reset_zeroes_the_caches(runner, random_ids):
    runner.prefill(random_ids(5))
    runner.rewind(0)
    runner.reset()
    for name, spec in runner.file.decode.caches.items():
        assert not runner._caches[name].read(int(np.prod(spec.shape)), spec.dtype).any()


def test_new_runner_begins_with_zeroed_caches(tiny_file, runner, random_ids):
    runner.prefill(random_ids(S))  # leaves numbers in freed memory as likely as not
    with Runner.open(tiny_file) as fresh:
        for name, spec in fresh.file.decode.caches.items():
            assert not fresh._caches[name].read(int(np.prod(spec.shape)), spec.dtype).any()


def test_logits_are_copies(runner, random_ids):
    first = runner.step(3)
    kept = first.copy()
    runner.step(4)
    np.testing.assert_array_equal(first, kept)


@relaxed
@given(ids=texts, first=st.integers(0, S))
def test_prefill_logits_after_every_token(scorer, scoring_toy, ids, first):
    scorer.reset()
    parts = [scorer.prefill_logits(ids[:first]), scorer.prefill_logits(ids[first:])]
    np.testing.assert_allclose(np.concatenate(parts), scoring_toy.reference(ids), atol=TOLERANCE)


def test_prefill_logits_of_no_tokens(scorer):
    assert scorer.prefill_logits([]).shape == (0, V)


def test_prefill_logits_names_the_option_that_gives_them(runner):
    with pytest.raises(RuntimeFileError, match=r"tiny\.tflite.*--prefill-logits"):
        runner.prefill_logits([1])


def test_full_context_names_the_sizes_and_changes_nothing(runner, toy, random_ids):
    ids = random_ids(S + 1)
    with pytest.raises(RuntimeFileError, match=f"{S + 1} tokens do not fit its context of {S};.*--kv-cache-len"):
        runner.prefill(ids)
    assert runner.position == 0
    runner.prefill(ids[: S - 1])
    with pytest.raises(RuntimeFileError, match=f"2 tokens do not fit its context of {S}, of which {S - 1} are used"):
        runner.prefill(ids[:2])
    np.testing.assert_allclose(runner.step(ids[S - 1]), toy.reference(ids[:S])[-1], atol=TOLERANCE)
    with pytest.raises(RuntimeFileError, match=f"of which {S} are used"):
        runner.step(1)


@pytest.mark.parametrize("token", [-1, V])
def test_token_outside_the_vocabulary(runner, token):
    with pytest.raises(RuntimeFileError, match=f"token {token} is outside its vocabulary of {V}"):
        runner.prefill([1, token])
    with pytest.raises(RuntimeFileError, match=f"token {token}"):
        runner.step(token)
    assert runner.position == 0


@pytest.mark.parametrize("position", [-1, 3])
def test_rewind_goes_back_only(runner, position):
    runner.prefill([1, 2])
    with pytest.raises(RuntimeFileError, match=f"position {position}: 2 tokens"):
        runner.rewind(position)


def test_threads(tiny_file):
    with Runner.open(tiny_file, threads=1) as one:
        assert one.threads == 1
    with pytest.raises(RuntimeFileError, match="0 threads"):
        Runner.open(tiny_file, threads=0)
    assert available_cores() >= 1


def test_opening_prints_nothing_and_passes_on_what_others_print(tiny_file, capfd, monkeypatch):
    from ai_edge_litert.compiled_model import CompiledModel

    load = CompiledModel.from_file

    def talkative(*args, **kwargs):
        subprocess.run([sys.executable, "-c", "import sys; sys.stderr.write('INFO: log\\nanother thread\\n')"], check=True)
        return load(*args, **kwargs)

    monkeypatch.setattr(CompiledModel, "from_file", talkative)
    Runner.open(tiny_file)
    assert capfd.readouterr() == ("", "another thread\n")


def test_a_bundle_runs_as_its_model_does(tiny_file, runner, random_ids, tmp_path, monkeypatch):
    from flatlm.convert.bundle import BundleMetadata, TokenizerSource, write_bundle

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "tiny.litertlm"
    write_bundle(path, model=tiny_file, tokenizer=TokenizerSource("hf", b"{}"), metadata=BundleMetadata(max_num_tokens=S))
    ids = random_ids(30)
    runner.prefill(ids)
    with Runner.open(path) as bundled:
        assert bundled.prefill_lengths == runner.prefill_lengths
        bundled.prefill(ids)
        np.testing.assert_array_equal(bundled.step(1), runner.step(1))
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def test_imports_neither_torch_nor_the_runtime():
    modules = ", ".join(f"flatlm.generative.{name}" for name in ("generate", "memory", "model_file", "runner", "sampling", "targets.open"))
    code = f"import sys, {modules}; assert not {{'torch', 'ai_edge_litert'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_running_imports_no_torch(tiny_file):
    code = "import sys; from flatlm.generative.runner import Runner; Runner.open(sys.argv[1]).step(1); assert not 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(tiny_file)], check=True, cwd=Path(__file__).parents[2])


def cost(plan):
    return sum(1 if length == 1 else 1 + length / 8 for length in plan)


@settings(deadline=None)
@given(count=st.integers(0, 14), lengths=st.sets(st.sampled_from([2, 4, 8, 16]), max_size=3), spare=st.integers(0, 20))
def test_split_is_the_cheapest_that_stays_within_the_cache(count, lengths, spare):
    room = count + spare
    plan = split(count, lengths=sorted(lengths), room=room)

    def reads_it(calls):
        read = 0
        for i, length in enumerate(calls):
            if read + length > room or (read + length > count and i < len(calls) - 1):
                return False
            read += length
        return read >= count

    assert reads_it(plan)
    choices = [1, *lengths]
    if count <= 6:
        every = (calls for size in range(count + 1) for calls in product(choices, repeat=size) if reads_it(calls))
        assert cost(plan) == min(map(cost, every), default=0)


@pytest.mark.parametrize(
    ("count", "room", "plan"),
    [
        (128, 512, [128]),
        (3, 512, [1, 1, 1]),
        (100, 512, [128]),
        (100, 127, [1] * 100),
        (512 + 128 + 120, 2048, [512, 128, 128]),
        (700, 700, [512, 128] + [1] * 60),
    ],
)
def test_split_of_some_prompts(count, room, plan):
    assert split(count, lengths=(128, 512), room=room) == plan


def test_a_ring_remembers_how_far_padding_was_written(tmp_path):
    """Window 17, prefill_16: 35 tokens are read in 3 calls, the last one padded to 48. Going back 16 is too far, 3 is not."""
    model = random_decoder(tiny_config(window=17), cache_length=64, longest_step=16)
    file = export_fast(model, signature_specs((16,), prefill_logits=True), tmp_path / "ring.tflite")
    ids = np.random.default_rng(0).integers(0, 96, 40).tolist()
    with Runner.open(file) as runner:
        expected = runner.prefill_logits(ids)
        runner.reset()
        runner.prefill(ids[:35])
        for position, kept in ((0, True), (19, False), (31, False), (32, True), (35, True), (36, False)):
            assert runner.can_rewind(position) is kept
        with pytest.raises(RuntimeFileError, match=r"cannot go back 16 tokens: .* padding of the last prefill included"):
            runner.rewind(19)
        runner.rewind(32)
        np.testing.assert_allclose(runner.prefill_logits(ids[32:]), expected[32:], atol=1e-4)
        runner.rewind(0)
        assert runner.can_rewind(0)
