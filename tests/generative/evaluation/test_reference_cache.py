"""What is kept of a reference, what that costs, and evaluations that are killed and go on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from flatlm.errors import ConfigError, OutputError
from flatlm.generative.evaluation import evaluate as module
from flatlm.generative.evaluation import reference_cache, scoring
from flatlm.generative.evaluation.distributions import Distributions, record_type, score_whole
from flatlm.generative.evaluation.divergence import kl_divergence
from flatlm.generative.evaluation.evaluate import EvaluationRequest, evaluate
from flatlm.generative.evaluation.greedy import equal_tokens, prompts_of
from flatlm.generative.evaluation.journal import Journal
from flatlm.generative.evaluation.reference_cache import ReferenceCache, top_that_fits
from flatlm.generative.evaluation.scores import TOKEN, standard_error
from flatlm.generative.evaluation.scoring import KeptReference, chunk_length, score_windows
from flatlm.generative.runner import Runner
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.documents import Piece, read_documents
from flatlm.utilities.exporter import ExportRequest, export

ASSETS = Path(__file__).parents[3] / "flatlm" / "assets"
DEMO = ASSETS / "demo_model"
STORIES = read_documents(ASSETS / "demo_text" / "held_out.json")[:6]


def rows(seed: int, count: int = 5, vocab: int = 40, spread: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=spread, size=(count, vocab)).astype(np.float32)


@given(st.integers(0, 10_000), st.integers(1, 39), st.floats(0.1, 6.0))
def test_a_part_of_a_distribution_bounds_the_divergence(seed: int, top: int, spread: float) -> None:
    reference, file = rows(seed, spread=spread), rows(seed + 1, spread=spread)
    targets = np.arange(5)
    exact = kl_divergence(reference, file)
    kept = Distributions.of(reference, targets, top)
    found = kept.score(file, targets)
    assert (found["kl"] <= exact + 1e-6).all() and (exact <= found["kl_most"] + 1e-6).all()
    whole = score_whole(reference, kept, file, targets)
    np.testing.assert_allclose(whole["kl_missed"], exact - found["kl"], atol=1e-12)
    np.testing.assert_allclose(whole["kl"], exact)
    for name in ("nll", "reference_nll", "top1", "top5"):
        np.testing.assert_allclose(found[name], whole[name], atol=1e-6)


def test_all_of_a_distribution_is_exact() -> None:
    reference, file = rows(0), rows(1)
    found = Distributions.of(reference, np.arange(5), 40).score(file, np.arange(5))
    np.testing.assert_allclose(found["kl"], kl_divergence(reference, file), rtol=1e-5)
    np.testing.assert_allclose(found["kl_most"], found["kl"])


def test_the_coarse_divergence_written_out() -> None:
    p, q = np.array([0.6, 0.3, 0.08, 0.02]), np.array([0.5, 0.1, 0.1, 0.3])
    found = Distributions.of(np.log([p]).astype(np.float32), np.array([1]), 2).score(np.log([q]).astype(np.float32), np.array([1]))
    coarse = 0.6 * np.log(0.6 / 0.5) + 0.3 * np.log(0.3 / 0.1) + 0.1 * np.log(0.1 / 0.4)
    assert found["kl"][0] == pytest.approx(coarse, abs=1e-6)
    assert found["nll"][0] == pytest.approx(-np.log(0.1), abs=1e-6) and found["reference_nll"][0] == pytest.approx(-np.log(0.3), abs=1e-6)


def test_logits_that_are_not_numbers_are_infinitely_far() -> None:
    broken = rows(1)
    broken[2, 7] = np.nan
    found = Distributions.of(rows(0), np.arange(5), 8).score(broken, np.arange(5))
    assert np.isinf(found["kl"]).tolist() == [False, False, True, False, False]
    assert not found["top1"][2] and not np.isfinite(found["nll"][2])


def test_of_equal_tokens_the_smaller_id_comes_first() -> None:
    reference = np.zeros((1, 300), np.float32)
    reference[0, [40, 250, 7, 9]] = 3.0
    kept = Distributions.of(reference, np.array([7]), 4)
    assert kept.records["ids"][0].tolist() == [7, 9, 40, 250]
    file = rows(0, 1, 300, 0.1)
    file[0, 7] = 5.0
    assert kept.score(file, np.array([7]))["top1"][0] and score_whole(reference, kept, file, np.array([7]))["top1"][0]


def test_of_a_file_that_gives_no_numbers_nothing_is_said_to_be_kept() -> None:
    broken = np.full((1, 40), np.nan, np.float32)
    reference = rows(0, 1)
    found = score_whole(reference, Distributions.of(reference, np.array([1]), 8), broken, np.array([1]))
    assert np.isinf(found["kl"][0]) and found["kl_missed"][0] == 0


class NoNumbers:
    def reset(self) -> None: ...
    def prefill(self, ids: list[int]) -> None: ...
    def step(self, token: int) -> np.ndarray:
        return np.full(9, np.nan, np.float32) if token == 2 else np.eye(9, dtype=np.float32)[2]


def test_greedy_texts_part_where_there_are_no_numbers() -> None:
    assert equal_tokens(NoNumbers(), [5], [2, 0, 0]) == 1
    assert [len(prompt) for prompt in prompts_of([range(100), range(9), range(1)], 5, room=512)] == [16, 4, 1]
    assert [len(prompt) for prompt in prompts_of([range(100), range(9)], 1, room=8)] == [4]


@pytest.mark.parametrize(
    ("vocabulary", "lengths", "chunk"),
    [(32_000, (16, 128, 512), 512), (262_144, (16, 128, 512), 128), (262_144, (512, 1024), 512), (262_144, (), 64), (1 << 26, (), 1)],
)
def test_chunks_are_what_a_signature_takes(vocabulary: int, lengths: tuple[int, ...], chunk: int) -> None:
    specs = [SimpleNamespace(length=length, outputs={"logits": None}) for length in lengths]
    assert chunk_length(SimpleNamespace(vocab_size=vocabulary, file=SimpleNamespace(prefill=specs))) == chunk


def test_rows_are_scored_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is found is the same, and so is what is kept."""

    class Fixed:
        name = "fixed"

        def __init__(self, seed: int) -> None:
            self.logits = rows(seed, 20)

        def reset(self) -> None: ...
        def feed(self, ids: list[int]) -> np.ndarray:
            return self.logits[: len(ids)]

    piece = Piece(tuple(range(20)), 19)
    found = []
    for number, most in enumerate((1 << 22, 3 * 40)):
        monkeypatch.setattr(scoring, "SCORED_AT_ONCE", most)
        cache = ReferenceCache.open(tmp_path / str(number), "key", 8)
        found.append(score_windows(Fixed(0), [piece], reference=KeptReference(Fixed(1), cache), chunk=20)[0])
        found.append(score_windows(Fixed(0), [piece], reference=KeptReference(Fixed(1), cache), chunk=20)[0])
        found.append(score_windows(Fixed(0), [piece], chunk=20)[0])
        cache.close()
    assert np.isnan(found[1]["kl_missed"]).all() and not np.isnan(found[0]["kl_missed"]).any()
    for one, other in zip(found[:3], found[3:], strict=True):
        for name in TOKEN.names:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_longer_text_keeps_less_of_each() -> None:
    assert top_that_fits(50_000, 32_000) == 256
    assert top_that_fits(50_000, 40) == 40
    assert 8 < top_that_fits(8_000_000, 32_000) < 256
    assert top_that_fits(10**10, 32_000) == 8
    tokens, top = 5_000_000, top_that_fits(5_000_000, 32_000)
    assert tokens * record_type(top).itemsize <= reference_cache.MOST_BYTES < tokens * record_type(top + 1).itemsize


def test_clusters_count_as_what_they_are() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    alone = standard_error([values])
    assert alone == pytest.approx(values.std(ddof=1) / np.sqrt(1000))
    assert standard_error([np.array([v]) for v in values]) == pytest.approx(alone, rel=0.01)
    # The same value ten times in each cluster is one value each.
    assert standard_error([np.repeat(v, 10) for v in values]) == pytest.approx(alone, rel=0.01)


def test_kept_distributions_go_on_where_they_end(tmp_path: Path) -> None:
    found = [Distributions.of(rows(seed), np.arange(5), 8) for seed in range(3)]
    cache = ReferenceCache.open(tmp_path, "key", 8)
    assert ReferenceCache.open(tmp_path, "key", 8) is None  # somebody else is at it
    cache.append(0, found[0])
    cache.append(10, found[2])  # with a hole before it
    cache.append(5, Distributions(found[1].records[:2]))
    cache.close()
    with (tmp_path / "key-8" / "records").open("ab") as file:
        file.write(b"half a record")
    cache = ReferenceCache.open(tmp_path, "key", 8)
    np.testing.assert_array_equal(cache.read(0, 7).records, np.concatenate([found[0].records, found[1].records[:2]]))
    assert cache.read(5, 5) is None
    cache.append(5, found[1])
    np.testing.assert_array_equal(cache.read(5, 5).records, found[1].records)
    cache.close()


def test_the_longest_unused_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = record_type(8).itemsize * 5
    monkeypatch.setattr(reference_cache, "MOST_BYTES_IN_ALL", 3 * size + 100)
    monkeypatch.setattr(reference_cache, "MOST_BYTES", size)
    for number in range(5):
        cache = ReferenceCache.open(tmp_path, f"key{number}", 8)
        cache.append(0, Distributions.of(rows(number), np.arange(5), 8))
        cache.close()
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["key2-8", "key3-8", "key4-8"]


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="--reference-cache"):
        ReferenceCache.open(tmp_path / "file", "key", 8)
    with pytest.raises(OutputError, match="--work"):
        Journal.open(tmp_path / "file", "key")


def test_a_journal_keeps_whole_windows(tmp_path: Path) -> None:
    windows = [np.zeros(count, TOKEN) for count in (3, 4, 5)]
    for number, window in enumerate(windows):
        window["nll"] = number
    journal = Journal.open(tmp_path, "key")
    assert journal.read([3, 4, 5]) == []
    for window in windows[:2]:
        journal.append(window)
    assert Journal.open(tmp_path, "key").folder is None  # the same evaluation, running elsewhere
    journal.close()
    with (tmp_path / "key" / "tokens").open("ab") as file:
        file.write(windows[2].tobytes()[:-20])
    journal = Journal.open(tmp_path, "key")
    assert [window["nll"].tolist() for window in journal.read([3, 4, 5])] == [[0] * 3, [1] * 4]
    journal.append(windows[2])
    assert [len(window) for window in journal.read([3, 4, 5])] == [3, 4, 5]
    journal.close(finished=True)
    assert not (tmp_path / "key").exists()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model by two recipes, with a context of 128."""
    place = tmp_path_factory.mktemp("files")
    found = {}
    for recipe in ("none", "dynamic_int4_block32"):
        found[recipe] = place / f"{recipe}.tflite"
        export(ExportRequest(DEMO, found[recipe], get_recipe(recipe), (32, 64), 128, prefill_logits=True))
    return found


@pytest.fixture
def request_of(files: dict[str, Path], tmp_path: Path) -> Callable[[str], EvaluationRequest]:
    def make(recipe: str) -> EvaluationRequest:
        return EvaluationRequest(
            files[recipe], STORIES, DEMO, stride=64, work=tmp_path / "work", reference_cache=tmp_path / "references", greedy_prompts=4
        )

    return make


@pytest.mark.slow
def test_another_file_needs_the_reference_no_more(request_of, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = evaluate(replace(request_of("dynamic_int4_block32"), reference_top=0))
    first = evaluate(request_of("none"))
    assert first.kept_reference is None and exact.kept_reference is None
    monkeypatch.setattr(module, "open_reference", lambda *args, **kwargs: pytest.fail("the reference is run again"))
    report = evaluate(request_of("dynamic_int4_block32"))
    kept = report.kept_reference
    assert (kept.top, kept.tokens) == (256, report.tokens)
    assert kept.mean_kl_missed == pytest.approx(0, abs=1e-6)  # of the float32 file, which has no divergence to miss
    assert report.divergence.mean_kl <= exact.divergence.mean_kl <= kept.mean_kl_most
    assert report.divergence.mean_kl == pytest.approx(exact.divergence.mean_kl, rel=0.02)
    assert report.divergence.reference_perplexity == pytest.approx(exact.divergence.reference_perplexity, rel=1e-9)
    same = ("top1_agreement", "top5_agreement", "perplexity_ratio", "perplexity_ratio_standard_error")
    for name in same:
        assert getattr(report.divergence, name) == pytest.approx(getattr(exact.divergence, name), rel=1e-9)
    assert report.greedy == exact.greedy and 0 < report.greedy.median_first_divergence <= 32
    json.dumps(report.to_dict())


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on_where_it_was(request_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(replace(request_of("dynamic_int4_block32"), work=tmp_path / "other", reference_cache=tmp_path / "elsewhere"))

    def stop(stage: str, done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(request_of("dynamic_int4_block32"), progress=stop)
    assert any((tmp_path / "work").iterdir())
    read, prefill_logits = [0], Runner.prefill_logits

    def counted(self: Runner, ids: list[int]) -> np.ndarray:
        read[0] += len(ids)
        return prefill_logits(self, ids)

    monkeypatch.setattr(Runner, "prefill_logits", counted)
    again = evaluate(request_of("dynamic_int4_block32"))
    assert 0 < read[0] < 0.9 * whole.tokens
    # The window that was cut off had been read by the reference: it is compared with what was kept of that.
    assert 0 < again.kept_reference.tokens < 128
    assert again.divergence.mean_kl == pytest.approx(whole.divergence.mean_kl, rel=1e-3)
    assert replace(again, divergence=None, kept_reference=None) == replace(whole, divergence=None)
    assert not any((tmp_path / "work").iterdir())


@pytest.mark.slow
def test_weights_that_were_changed_are_another_reference(request_of, tmp_path: Path) -> None:
    """In a place that the fingerprint of a checkpoint, which reads samples, does not look at."""
    checkpoint = tmp_path / "changed"
    shutil.copytree(DEMO, checkpoint)
    first = evaluate(replace(request_of("none"), checkpoint=checkpoint, documents=STORIES[:2]))
    weights = checkpoint / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.embed_tokens.weight"][500:] *= 1.5
    save_file(tensors, weights)
    again = evaluate(replace(request_of("none"), checkpoint=checkpoint, documents=STORIES[:2]))
    assert again.kept_reference is None and again.divergence.reference_perplexity > 1.01 * first.divergence.reference_perplexity


@pytest.mark.slow
def test_a_reference_that_is_not(request_of) -> None:
    with pytest.raises(ConfigError, match="--against tensorflow: choose one of transformers, eager"):
        evaluate(replace(request_of("none"), against="tensorflow"))
    eager = evaluate(replace(request_of("none"), against="eager", documents=STORIES[:1]))
    assert eager.against == "eager" and eager.divergence.mean_kl < 1e-8
