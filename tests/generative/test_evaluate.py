"""Perplexity and KL of files: a toy's against sums written out here, the demo model's against transformers' own loss."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from flatlm.errors import RuntimeFileError, TextError, TokenizerError
from flatlm.generative.divergence import kl_divergence, negative_log_likelihood
from flatlm.generative.evaluate import EvaluationReport, RunningFile, evaluate, measure, read_documents
from flatlm.generative.runner import Runner
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.documents import Piece, cut
from flatlm.utilities.exporter import ExportRequest, export
from tests.generative.toy_model import S, Toy, V

ASSETS = Path(__file__).parents[2] / "flatlm" / "assets"
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


def contexts(ids: Sequence[int], begin: Sequence[int] = ()) -> list[list[int]]:
    """What each token but the first is foretold from, by the rule in the docstring: a piece after another, S tokens each at most."""
    found, piece = [], [ids[0]]
    for before, token in pairwise(ids):
        if len(piece) > S:
            piece = [*begin, before]
        found.append(list(piece))
        piece.append(token)
    return found


@pytest.mark.parametrize("begin", [True, False])
def test_a_toys_perplexity_is_the_sum_written_out(scoring_file, scoring_toy, random_ids, tmp_path: Path, begin: bool) -> None:
    texts = [random_ids(10), random_ids(S, 1), random_ids(3 * S + 2, 2), random_ids(2, 3)]
    report = evaluate(scoring_file, list(map(words, texts)), tokenizer=word_tokenizer(tmp_path, begin=begin))
    start = [BOS] if begin else []
    total, count = 0.0, 0
    for ids in ([*start, *text] for text in texts):
        for context, token in zip(contexts(ids, start), ids[1:], strict=True):
            total -= log_probabilities(scoring_toy, context)[token]
            count += 1
    assert count == sum(map(len, texts)) - (0 if begin else len(texts))
    assert (report.tokens, report.context) == (count, S)
    assert report.nll_per_token == pytest.approx(total / count, abs=1e-6)
    assert report.perplexity == pytest.approx(math.exp(total / count), rel=1e-6)
    assert report.to_dict().keys() == {"tokens", "nll_per_token", "perplexity", "context"}


def test_a_file_without_logits_from_prefill_is_read_token_by_token(tiny_file, toy, random_ids, tmp_path: Path) -> None:
    ids = random_ids(20)
    report = evaluate(tiny_file, [words(ids)], tokenizer=word_tokenizer(tmp_path))
    expected = [-log_probabilities(toy, [BOS, *ids[:i]])[token] for i, token in enumerate(ids)]
    assert report.nll_per_token == pytest.approx(np.mean(expected), abs=1e-6)


def test_divergence_from_a_reference(scoring_file, scoring_toy, toy, random_ids) -> None:
    ids = random_ids(30)
    pieces = [Piece(tuple(ids[:20]), 19), Piece((BOS, *ids[19:]), 10)]
    with Runner.open(scoring_file) as runner:
        near = measure(RunningFile(runner), pieces, reference=ToyReference(scoring_toy))
        far = measure(RunningFile(runner), pieces, reference=ToyReference(toy), chunk=3)
    assert near.mean_kl < 1e-9 and near.top1_agreement == 1 and near.tokens == 29
    assert near.reference_perplexity == pytest.approx(near.perplexity, rel=1e-6)
    kl, agreed, nll = 0.0, 0, 0.0
    for context, token in [(ids[:i], ids[i]) for i in range(1, 20)] + [([BOS, *ids[19:i]], ids[i]) for i in range(20, 30)]:
        p, q = log_probabilities(toy, context), log_probabilities(scoring_toy, context)
        kl += sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
        agreed += p.index(max(p)) == q.index(max(q))
        nll -= p[token]
    assert far.mean_kl == pytest.approx(kl / 29, abs=1e-6)
    assert far.top1_agreement == agreed / 29 < 0.5
    assert far.reference_perplexity == pytest.approx(math.exp(nll / 29), rel=1e-6)
    assert far.perplexity == pytest.approx(near.perplexity, rel=1e-6)
    assert far.to_dict().keys() >= {"perplexity", "nll_per_token", "tokens", "mean_kl", "top1_agreement"}


def test_so_many_tokens_and_no_more(scoring_file, random_ids, tmp_path: Path) -> None:
    tokenizer, texts = word_tokenizer(tmp_path), [random_ids(5), random_ids(2 * S, 1)]
    seen: list[tuple[str, int, int]] = []
    report = evaluate(scoring_file, list(map(words, texts)), tokenizer=tokenizer, max_tokens=60, progress=lambda *step: seen.append(step))
    same = evaluate(scoring_file, [words(texts[0]), words(texts[1][:55])], tokenizer=tokenizer)
    assert (report.tokens, report.nll_per_token) == (same.tokens, same.nll_per_token) == (60, pytest.approx(same.nll_per_token))
    assert seen[-1] == ("evaluate", 60, 60) and seen.count(seen[-1]) == 1


@given(st.integers(2, 60), st.integers(1, 20), st.integers(0, 2))
def test_pieces_score_each_token_once_and_fit(count: int, length: int, begins: int) -> None:
    ids, begin = list(range(count)), [100] * begins
    pieces = list(cut(ids, length, begin=begin))
    assert [token for piece in pieces for token in piece.ids[-piece.scored :]] == ids[1:]
    for piece in pieces:
        assert len(piece.ids) - 1 <= length
        kept = [token for token in piece.ids if token != 100]
        assert kept == ids[kept[0] : kept[-1] + 1] and len(kept) == piece.scored + 1


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
    }
    for name, (content, expected) in kinds.items():
        (tmp_path / name).write_text(content, "utf-8")
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
    with pytest.raises(TextError, match="give at least one document"):
        evaluate(scoring_file, [], tokenizer=tokenizer)
    with pytest.raises(TextError, match=r"document 2: the text '' has 1 tokens"):
        evaluate(scoring_file, ["w1", ""], tokenizer=tokenizer)
    with pytest.raises(TextError, match="--max-tokens 0"):
        evaluate(scoring_file, ["w1"], tokenizer=tokenizer, max_tokens=0)
    with pytest.raises(TokenizerError, match="--tokenizer DIR"):
        evaluate(scoring_file, ["w1"])
    with pytest.raises(RuntimeFileError, match="--lora"):
        evaluate(scoring_file, ["w1"], tokenizer=tokenizer, lora=tmp_path)
    word_tokenizer(tmp_path, V + 1)
    with pytest.raises(TextError, match=f"document 1: .* is the wrong tokenizer: it gives token {V}"):
        evaluate(scoring_file, [f"w1 w{V}"], tokenizer=tokenizer)


STORIES = 12


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return read_documents(ASSETS / "demo_text" / "held_out.json")[:STORIES]


def exported(directory: Path, recipe: str, suffix: str) -> Path:
    """A context of 128, which stories do not fit."""
    file = directory / f"{recipe}{suffix}"
    export(ExportRequest(DEMO, file, get_recipe(recipe), (32, 64), 128, prefill_logits=suffix == ".tflite"))
    return file


def transformers_loss(texts: Sequence[str], length: int) -> float:
    """Mean cross-entropy, by transformers alone, of pieces of `length` tokens with BOS before each."""
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO)
    total, count = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert ids[0, 0] == tokenizer.bos_token_id
        first = 0
        while first < ids.shape[1] - 1:
            begin = ids[:, :1] if first else ids[:, :0]
            piece = torch.cat([begin, ids[:, first : first + length - begin.shape[1] + 1]], 1)
            labels = piece.clone()
            labels[:, : begin.shape[1] + 1] = -100
            scored = piece.shape[1] - begin.shape[1] - 1
            with torch.inference_mode():
                total += scored * model(piece, labels=labels).loss.item()
            count += scored
            first += scored
    assert count == sum(len(tokenizer(text).input_ids) - 1 for text in texts)
    return total / count


@pytest.mark.slow
def test_the_demo_models_float32_file_has_transformers_perplexity(stories: list[str], tmp_path: Path) -> None:
    expected = transformers_loss(stories, 128)
    report = evaluate(exported(tmp_path, "none", ".tflite"), stories, checkpoint=DEMO)
    assert report.tokens > 128 * STORIES and report.context == 128 and report.against == "transformers"
    assert report.nll_per_token == pytest.approx(expected, abs=2e-6)
    assert report.perplexity == pytest.approx(math.exp(expected), rel=2e-6)
    assert report.reference_perplexity == pytest.approx(math.exp(expected), rel=2e-6)
    assert 0 <= report.mean_kl < 1e-8 and report.top1_agreement >= 0.999


@pytest.mark.slow
def test_the_demo_models_int8_bundle_is_close(stories: list[str], tmp_path: Path) -> None:
    """A bundle brings its tokenizer; without logits from prefill it is read token by token."""
    bundle = exported(tmp_path, "dynamic_int8", ".litertlm")
    report: EvaluationReport = evaluate(bundle, stories[:4], checkpoint=DEMO)
    assert report.reference_perplexity == pytest.approx(math.exp(transformers_loss(stories[:4], 128)), rel=2e-6)
    assert report.perplexity == pytest.approx(report.reference_perplexity, rel=0.02)
    assert 1e-5 < report.mean_kl < 0.01 and report.top1_agreement > 0.95
    alone = evaluate(bundle, stories[:4])
    assert (alone.perplexity, alone.tokens, alone.mean_kl) == (report.perplexity, report.tokens, None)
