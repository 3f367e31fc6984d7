"""Perplexity and KL of files: a toy's against sums written out here, the demo model's against transformers' own loss."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from flatlm.errors import RuntimeFileError, TextError, TokenizerError
from flatlm.generative.evaluation.divergence import kl_divergence, negative_log_likelihood
from flatlm.generative.evaluation.evaluate import EvaluationReport, EvaluationRequest, evaluate, measure
from flatlm.generative.evaluation.scoring import RunningFile
from flatlm.generative.runner import Runner
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.documents import Piece, read_documents, windows
from flatlm.utilities.exporter import ExportRequest, export
from tests.generative.toy_model import S, Toy, V

ASSETS = Path(__file__).parents[3] / "flatlm" / "assets"
DEMO = ASSETS / "demo_model"
BOS = 3


def words(ids: Sequence[int]) -> str:
    return " ".join(word(i) for i in ids)


def word(i: int) -> str:
    return "<s>" if i == BOS else f"w{i}"


def word_tokenizer(directory: Path, size: int = V, *, begin: bool = True) -> Path:
    """Token i is the word w<i>, but that `BOS` is <s>, with which a text begins, where asked for."""
    tokenizer = Tokenizer(models.WordLevel({word(i): i for i in range(size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([word(BOS)])
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{word(BOS)} $A", special_tokens=[(word(BOS), BOS)])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": word(BOS)}))
    return directory


class ToyReference:
    """A toy that computes every text from its beginning."""

    name = "toy"

    def __init__(self, toy: Toy) -> None:
        self.toy = toy
        self.reset()

    def reset(self) -> None:
        self.ids: list[int] = []

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        self.ids += ids
        return self.toy.reference(self.ids)[-len(ids) :]


def log_probabilities(toy: Toy, ids: Sequence[int]) -> list[float]:
    """Of the token after the ids, whichever it is."""
    return torch.log_softmax(torch.tensor(toy.reference(ids)[-1]).double(), -1).tolist()


def hf_windows(ids: Sequence[int], context: int, stride: int) -> list[tuple[int, list[int]]]:
    """Of each token that is scored: it, and what it is foretold from; by the loop of "Perplexity of fixed-length models"."""
    found, before = [], 0
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        found += [(ids[i], list(ids[begin:i])) for i in range(max(before, begin + 1), end)]
        before = end
        if end == len(ids):
            break
    return found


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize(("context", "stride"), [(None, S // 2), (None, 1 + S // 3), (10, 9), (7, None), (None, None)])
def test_a_toys_perplexity_is_the_sum_written_out(
    scoring_file, scoring_toy, random_ids, tmp_path: Path, begin: bool, context: int | None, stride: int | None
) -> None:
    texts = [random_ids(10), random_ids(S, 1), random_ids(3 * S + 2, 2), random_ids(2, 3)]
    tokenizer = word_tokenizer(tmp_path, begin=begin)
    documents = list(map(words, texts))
    report = evaluate(EvaluationRequest(scoring_file, documents, tokenizer=tokenizer, context=context, stride=stride))
    length = context or S
    total, count, size, cut = 0.0, 0, 0, 0
    for text in texts:
        ids = [BOS, *text] if begin else text
        cut += stride is None and len(ids) > length
        scored = hf_windows(ids, length, stride) if stride else hf_windows(ids[:length], length, length)
        total -= sum(log_probabilities(scoring_toy, before)[token] for token, before in scored)
        count += len(scored)
        foretold = ids if stride else ids[:length]
        size += len(words(foretold[1:])) + (0 if begin else 1)  # a word brings the space before it
    assert (report.tokens, report.context, report.stride, report.documents, report.cut_documents) == (count, length, stride, 4, cut)
    assert report.nll_per_token == pytest.approx(total / count, abs=1e-6)
    assert report.perplexity == pytest.approx(math.exp(total / count), rel=1e-6)
    assert report.bits_per_byte == pytest.approx(total / math.log(2) / size, rel=1e-6)
    assert "mean_kl" not in report.to_dict()


def test_a_file_without_logits_from_prefill_is_read_token_by_token(tiny_file, toy, random_ids, tmp_path: Path) -> None:
    ids = random_ids(20)
    report = evaluate(EvaluationRequest(tiny_file, [words(ids)], tokenizer=word_tokenizer(tmp_path)))
    expected = [-log_probabilities(toy, [BOS, *ids[:i]])[token] for i, token in enumerate(ids)]
    assert report.nll_per_token == pytest.approx(np.mean(expected), abs=1e-6)


def test_divergence_from_a_reference(scoring_file, scoring_toy, toy, random_ids) -> None:
    ids = random_ids(30)
    pieces = [Piece(tuple(ids[:20]), 19), Piece((BOS, *ids[19:]), 10)]
    with Runner.open(scoring_file) as runner:
        near = measure(RunningFile(runner), pieces, reference=ToyReference(scoring_toy))
        far = measure(RunningFile(runner), pieces, reference=ToyReference(toy), chunk=3)
    assert near.divergence.max_kl < 1e-9 and near.divergence.top1_agreement == near.divergence.top5_agreement == 1 and near.tokens == 29
    assert near.divergence.reference_perplexity == pytest.approx(near.perplexity, rel=1e-6)
    assert near.divergence.perplexity_ratio == pytest.approx(1, abs=1e-6) and near.divergence.perplexity_ratio_standard_error < 1e-6
    kls, first, five, nll = [], 0, 0, 0.0
    for context, token in [(ids[:i], ids[i]) for i in range(1, 20)] + [([BOS, *ids[19:i]], ids[i]) for i in range(20, 30)]:
        p, q = log_probabilities(toy, context), log_probabilities(scoring_toy, context)
        kls.append(sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
        first += p.index(max(p)) == q.index(max(q))
        five += p.index(max(p)) in sorted(range(V), key=lambda i: -q[i])[:5]
        nll -= p[token]
    found = far.divergence
    assert found.mean_kl == pytest.approx(np.mean(kls), abs=1e-6)
    assert found.median_kl == pytest.approx(np.median(kls), abs=1e-6)
    assert found.p99_kl == pytest.approx(np.quantile(kls, 0.99), abs=1e-6)
    assert found.max_kl == pytest.approx(max(kls), abs=1e-6)
    assert found.top1_agreement == first / 29 < found.top5_agreement == five / 29 < 0.8
    assert found.reference_perplexity == pytest.approx(math.exp(nll / 29), rel=1e-6)
    assert found.perplexity_ratio == pytest.approx(far.perplexity / found.reference_perplexity, rel=1e-9)
    assert far.perplexity == pytest.approx(near.perplexity, rel=1e-6)
    assert far.to_dict().keys() >= {"perplexity", "nll_per_token", "tokens", "mean_kl", "top1_agreement"}


def test_so_many_tokens_and_no_more(scoring_file, random_ids, tmp_path: Path) -> None:
    tokenizer, texts = word_tokenizer(tmp_path), [random_ids(5), random_ids(2 * S, 1), random_ids(9, 2)]
    seen: list[tuple[str, int, int]] = []
    request = EvaluationRequest(scoring_file, list(map(words, texts)), tokenizer=tokenizer, stride=S // 2)
    report = evaluate(replace(request, max_tokens=60), progress=lambda *step: seen.append(step))
    same = evaluate(replace(request, documents=[words(texts[0]), words(texts[1][:55])]))
    assert (report.tokens, report.nll_per_token) == (same.tokens, same.nll_per_token) == (60, pytest.approx(same.nll_per_token))
    assert report.bits_per_byte == pytest.approx(same.bits_per_byte)
    assert seen[-1] == ("evaluate", 60, 60) and seen.count(seen[-1]) == 1


@given(st.integers(2, 60), st.integers(2, 20), st.data())
def test_windows_score_each_token_once_and_fit(count: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context - 1))
    pieces = list(windows(list(range(count)), context, stride))
    assert [token for piece in pieces for token in piece.ids[-piece.scored :]] == list(range(1, count))
    for number, piece in enumerate(pieces):
        assert list(piece.ids) == list(range(number * stride, min(number * stride + context, count)))
        assert 0 < piece.scored < len(piece.ids) <= context
        assert number == 0 or len(piece.ids) - piece.scored >= context - stride
    assert list(windows(list(range(count)), context, None)) == pieces[:1]


def test_statistics_of_rows_and_of_what_is_not_finite() -> None:
    rows = np.random.default_rng(0).normal(size=(2, 3, 7)).astype(np.float32)
    assert kl_divergence(rows[0], rows[1]).shape == (3,)
    assert kl_divergence(rows[0], rows[1])[1] == pytest.approx(float(kl_divergence(rows[0, 1], rows[1, 1])))
    broken = np.array([[0.0, np.nan], [0.0, np.inf], [0.0, 0.0]], np.float32)
    assert kl_divergence(np.zeros((3, 2), np.float32), broken).tolist() == [math.inf, math.inf, 0.0]
    assert negative_log_likelihood(broken, np.array([0, 0, 1])).tolist() == [math.inf, math.inf, pytest.approx(math.log(2))]


def test_documents_from_each_kind_of_file(tmp_path: Path) -> None:
    kinds = {
        "a.txt": ("one\n\ntwo\n", ["one\n\ntwo\n"]),
        "b.json": ('["one", {"text": "two"}]', ["one", "two"]),
        "c.jsonl": ('"one\u2028"\n\n{"text": "two", "id": 7}\n', ["one\u2028", "two"]),
        "d.txt": ("\ufeffwith a mark", ["with a mark"]),
        "e.txt": ("one\r\ntwo\r", ["one\ntwo\n"]),
    }
    for name, (content, expected) in kinds.items():
        (tmp_path / name).write_bytes(content.encode())
        assert read_documents(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"x", r"a\.csv: the suffix says what it is; use \.txt, \.json, \.jsonl"),
        ("a.txt", b" \n", r"a\.txt: the text is empty"),
        ("a.txt", b"one\ntwo \xff", r"a\.txt, line 2: is not UTF-8"),
        ("a.json", b'[\n"one",\n}', r"a\.json, line 3: is not JSON"),
        ("a.json", b'{"text": "x"}', r"a\.json: a \.json file must be a list"),
        ("a.json", b"[]", r"a\.json has no documents"),
        ("a.json", b"[" * 100_000, r"a\.json: is not JSON that can be read"),
        ("a.json", b'["one", 2]', r'a\.json, document 2: must be a string, or an object with a string under "text", not 2'),
        ("a.json", b'["one", " "]', r"a\.json, document 2: the text is empty"),
        ("a.jsonl", b'"one"\n\n{"txt": "two"}', r"a\.jsonl, line 3: must be a string"),
        ("a.jsonl", b'"one"\ntwo', r"a\.jsonl, line 2: is not JSON"),
        ("a.jsonl", b"\n", r"a\.jsonl has no documents"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=message):
        read_documents(tmp_path / name)


def test_bad_requests_are_named(scoring_file, tmp_path: Path) -> None:
    tokenizer = word_tokenizer(tmp_path)
    with pytest.raises(TextError, match=r"missing\.txt cannot be read"):
        read_documents(tmp_path / "missing.txt")
    good = EvaluationRequest(scoring_file, ["w1 w2"], tokenizer=tokenizer)
    for change, error, message in [
        ({"documents": []}, TextError, "give at least one document"),
        ({"documents": ["w1", ""]}, TextError, r"document 2: the text '' has 1 tokens"),
        ({"max_tokens": 0}, TextError, "--max-tokens 0"),
        ({"tokenizer": None}, TokenizerError, "--tokenizer DIR"),
        ({"lora": tmp_path}, RuntimeFileError, "--lora"),
        ({"context": S + 1}, RuntimeFileError, f"--context {S + 1}: .* has a context of {S} tokens; .* --kv-cache-len"),
        ({"context": 1}, RuntimeFileError, "--context 1"),
        ({"stride": S}, RuntimeFileError, f"--stride {S}: choose 1 to {S - 1}"),
        ({"stride": 0}, RuntimeFileError, "--stride 0"),
    ]:
        with pytest.raises(error, match=message):
            evaluate(replace(good, **change))
    word_tokenizer(tmp_path, V + 1)
    with pytest.raises(TextError, match=f"document 1: .* is the wrong tokenizer: it gives token {V}"):
        evaluate(replace(good, documents=[f"w1 w{V}"]))


STORIES = 12


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return read_documents(ASSETS / "demo_text" / "held_out.json")[:STORIES]


def exported(directory: Path, recipe: str, suffix: str) -> Path:
    """A context of 128, which stories do not fit."""
    file = directory / f"{recipe}{suffix}"
    export(ExportRequest(DEMO, file, get_recipe(recipe), (32, 64), 128, prefill_logits=suffix == ".tflite"))
    return file


def transformers_loss(texts: Sequence[str], context: int, stride: int) -> float:
    """Mean cross-entropy by transformers alone, by its documentation's loop over windows (labels of -100 are not scored)."""
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO)
    total, count = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert ids[0, 0] == tokenizer.bos_token_id
        before = 0
        for begin in range(0, ids.shape[1], stride):
            end = min(begin + context, ids.shape[1])
            labels = ids[:, begin:end].clone()
            labels[:, : max(before - begin, 1)] = -100
            scored = int((labels != -100).sum())
            with torch.inference_mode():
                total += scored * model(ids[:, begin:end], labels=labels).loss.item()
            count += scored
            before = end
            if end == ids.shape[1]:
                break
    assert count == sum(len(tokenizer(text).input_ids) - 1 for text in texts)
    return total / count


@pytest.mark.slow
def test_the_demo_models_float32_file_has_transformers_perplexity(stories: list[str], tmp_path: Path) -> None:
    expected = transformers_loss(stories, 128, 48)
    report = evaluate(EvaluationRequest(exported(tmp_path, "none", ".tflite"), stories, DEMO, stride=48))
    assert report.tokens > 128 * STORIES and report.context == 128 and report.against == "transformers"
    assert report.nll_per_token == pytest.approx(expected, abs=2e-6)
    assert report.perplexity == pytest.approx(math.exp(expected), rel=2e-6)
    assert report.divergence.reference_perplexity == pytest.approx(math.exp(expected), rel=2e-6)
    assert 0 <= report.divergence.mean_kl < 1e-8 and report.divergence.top1_agreement >= 0.999
    assert (report.greedy.prompts, report.greedy.tokens, report.greedy.equal_to_the_end) == (STORIES, 32, STORIES)


@pytest.mark.slow
def test_the_demo_models_int8_bundle_is_close(stories: list[str], tmp_path: Path) -> None:
    """A bundle brings its tokenizer; without logits from prefill it is read token by token."""
    bundle = exported(tmp_path, "dynamic_int8", ".litertlm")
    report: EvaluationReport = evaluate(EvaluationRequest(bundle, stories[:4], DEMO, stride=64))
    found = report.divergence
    assert found.reference_perplexity == pytest.approx(math.exp(transformers_loss(stories[:4], 128, 64)), rel=2e-6)
    assert report.perplexity == pytest.approx(found.reference_perplexity, rel=0.02)
    assert abs(found.perplexity_ratio - 1) < 4 * found.perplexity_ratio_standard_error
    assert 1e-5 < found.mean_kl < 0.01 and found.top1_agreement > 0.95 and found.top5_agreement >= found.top1_agreement
    alone = evaluate(EvaluationRequest(bundle, stories[:4], stride=64))
    assert (alone.perplexity, alone.tokens, alone.divergence) == (report.perplexity, report.tokens, None)


@pytest.mark.slow
def test_stories260k_scores_what_transformers_does(shared: Path, tmp_path: Path) -> None:
    """1.47387 nats a token over 151 stories, BOS before each, cut at 512 tokens, in transformers 5."""
    checkpoint, file = shared / "checkpoints" / "stories260K", tmp_path / "stories.tflite"
    export(ExportRequest(checkpoint, file, get_recipe("none"), (128,), 512, prefill_logits=True))
    report = evaluate(EvaluationRequest(file, read_documents(shared / "text" / "tinystories_stories.json"), tokenizer=checkpoint))
    assert (report.tokens, report.documents, report.cut_documents) == (52592, 151, 14)
    assert report.nll_per_token == pytest.approx(1.47387, abs=5e-6)
