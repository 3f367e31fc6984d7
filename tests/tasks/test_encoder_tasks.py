"""Every task of an encoder, from a checkpoint through AutoLoader and an exported file, against transformers' own numbers."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flatlm import AutoLoader
from flatlm.cli import main
from flatlm.errors import ConfigError, RuntimeFileError
from flatlm.tasks.crf import Crf
from flatlm.tasks.runner import TaskRunner, open_task
from flatlm.tasks.windows import cut, sentence_ends
from flatlm.utilities.configs.crf_facts import decode_crf
from tests.tasks.made import LABELS, add_crf, make_bert, named

TOLERANCE = 1e-4
TEXT = "anna ran to new york . the dog sat !"
LONG = (
    "anna and maria ran from rome to new york city . the cat sat on a mat , and the dog was in rome with maria . 我在北京大学。 "
    "she ran to the city , and it was in new york , in rome"
)


class Made:
    """A checkpoint, exported for a task, and transformers' model of it."""

    def __init__(self, folder: Path, task: str, head: str, *, crf: bool = False, **config: Any) -> None:
        self.reference = make_bert(folder / task, head, **config)
        self.crf = add_crf(folder / task) if crf else {}
        self.loader = AutoLoader(task, model_name=task, model_dir=folder)
        self.file = folder / f"{task}.tflite"
        self.report = self.loader.export(self.file, recipe="none", prefill_lengths=(24,))
        self.runner: TaskRunner = self.loader.runner(self.file, threads=1)

    @torch.inference_mode()
    def expected(self, ids: tuple[int, ...], types: tuple[int, ...] | None = None) -> Any:
        types = (0,) * len(ids) if types is None else types
        return self.reference(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture(scope="module")
def masked(folder: Path) -> Made:
    return Made(folder, "masklm", "ForMaskedLM")


@pytest.fixture(scope="module")
def embedding(folder: Path) -> Made:
    return Made(folder, "embedding", "Model")


@pytest.fixture(scope="module")
def matching(folder: Path) -> Made:
    return Made(folder, "semantic-matching", "ForSequenceClassification", **named(("differ", "match")))


@pytest.fixture(scope="module")
def ner(folder: Path) -> Made:
    return Made(folder, "ner", "ForTokenClassification", crf=True, **named(LABELS))


def test_masklm(masked: Made) -> None:
    text = "the [MASK] sat on a [MASK] ."
    found = masked.runner.predict(text, top=3)
    ids = tuple(masked.loader.get_tokenizer().encode(text))
    expected = torch.softmax(masked.expected(ids).logits[0], -1)
    assert [text[place.start : place.end] for place in found.places] == ["[MASK]"] * 2
    for place, row in zip(found.places, [i for i, token in enumerate(ids) if token == 4], strict=True):
        best = expected[row].topk(3)
        assert [candidate.token_id for candidate in place.candidates] == best.indices.tolist()
        assert [candidate.probability for candidate in place.candidates] == pytest.approx(best.values.tolist(), abs=TOLERANCE)
    first, second = (place.candidates[0].token for place in found.places)
    assert found.text == f"the {first} sat on a {second} ."
    with pytest.raises(RuntimeFileError, match=r"no \[MASK\]"):
        masked.runner.predict("the cat")


def test_embedding(embedding: Made) -> None:
    texts = ("the cat sat", "a dog ran to rome .")
    vectors = []
    for text in texts:
        hidden = embedding.expected(tuple(embedding.loader.get_tokenizer().encode(text))).last_hidden_state[0]
        vectors.append(hidden.mean(0))
    found = embedding.runner.predict(texts[0], pair=texts[1])
    assert found.vector == pytest.approx(vectors[0].tolist(), abs=TOLERANCE)
    assert found.similarity == pytest.approx(float(torch.cosine_similarity(*vectors, dim=0)), abs=TOLERANCE)


def test_semantic_matching_and_classification(matching: Made) -> None:
    pair = ("the cat sat on a mat", "a dog sat")
    encoded = matching.loader.get_tokenizer().encode_text(*pair)
    assert set(encoded.type_ids) == {0, 1}
    expected = torch.softmax(matching.expected(encoded.ids, encoded.type_ids).logits[0], -1).tolist()
    found = matching.runner.predict(pair[0], pair=pair[1])
    assert (found.positive, found.probability) == ("match", pytest.approx(expected[1], abs=TOLERANCE))
    assert matching.runner.predict(pair[0], pair=pair[1], positive="differ").probability == pytest.approx(expected[0], abs=TOLERANCE)
    with pytest.raises(RuntimeFileError, match="give the second"):
        matching.runner.predict(pair[0])
    with pytest.raises(RuntimeFileError, match="'same', is no label of the model; it is one of differ, match"):
        matching.runner.predict(pair[0], pair=pair[1], positive="same")
    with open_task(matching.file, task="classification", tokenizer=matching.loader.directory, threads=1) as runner:
        alone = runner.predict(pair[0])
        logits = matching.expected(tuple(matching.loader.get_tokenizer().encode(pair[0]))).logits[0]
        assert alone.probabilities == pytest.approx(
            dict(zip(("differ", "match"), torch.softmax(logits, -1).tolist(), strict=True)), abs=1e-4
        )
        assert alone.label == ("differ", "match")[int(logits.argmax())]


def test_long_texts_are_refused_or_cut(matching: Made) -> None:
    with pytest.raises(RuntimeFileError, match=r"a text of \d+ tokens does not fit; it reads 24"):
        matching.runner.predict(LONG, pair=TEXT)
    tokenizer = matching.loader.get_tokenizer()
    found = matching.runner.predict(LONG, pair=TEXT, truncate=True)
    first = tokenizer.encode(LONG, add_special_tokens=False)
    second = tokenizer.encode(TEXT, add_special_tokens=False)
    assert len(second) == 10  # of 21 places, 11 are left for the first
    ids = (2, *first[:11], 3, *second, 3)
    expected = torch.softmax(matching.expected(ids, (0,) * 13 + (1,) * 11).logits[0], -1)
    assert found.probability == pytest.approx(float(expected[1]), abs=TOLERANCE)


def test_the_manifest_has_the_labels_and_the_crf(ner: Made) -> None:
    manifest = ner.runner.manifest
    assert manifest["labels"] == list(LABELS)
    for got, name in zip(decode_crf(manifest["crf"]), ("transitions", "start_transitions", "end_transitions"), strict=True):
        assert got.tobytes() == ner.crf[f"crf.{name}"].numpy().tobytes()
    assert ner.report.verification is not None and ner.report.verification["passed"]


def best_path(emissions: np.ndarray, crf: dict[str, torch.Tensor]) -> list[int]:
    """The best path to each label, step by step, as torch's numbers of the checkpoint say it."""
    parts = {name.removeprefix("crf."): value.double() for name, value in crf.items()}
    scores = torch.from_numpy(emissions).double()
    best = {label: (float(parts["start_transitions"][label] + scores[0, label]), [label]) for label in range(len(LABELS))}
    for row in scores[1:]:
        best = {
            label: max((score + float(parts["transitions"][path[-1], label] + row[label]), [*path, label]) for score, path in best.values())
            for label in range(len(LABELS))
        }
    return max((score + float(parts["end_transitions"][path[-1]]), path) for score, path in best.values())[1]


def test_ner_goes_by_the_crf(ner: Made) -> None:
    found = ner.runner.predict(TEXT)
    ids = tuple(ner.loader.get_tokenizer().encode(TEXT))
    emissions = ner.expected(ids).logits[0].numpy()
    path = best_path(emissions, ner.crf)
    assert path != emissions.argmax(-1).tolist()  # else the CRF would prove nothing
    assert [token.label for token in found.tokens] == [LABELS[label] for label in path[1:-1]]
    assert [TEXT[token.start : token.end] for token in found.tokens] == TEXT.split()
    assert all(span.text == TEXT[span.start : span.end] for span in found.spans)


def test_long_texts_are_labelled_in_windows(ner: Made) -> None:
    found = ner.runner.predict(LONG)
    encoded = ner.loader.get_tokenizer().encode_text(LONG)
    count = len(encoded.ids) - 2
    assert count > 2 * 22
    windows = cut(sentence_ends(LONG, encoded.offsets[1:-1]), 22)
    rows = []
    for window in windows:
        logits = ner.expected((2, *encoded.ids[1 + window.start : 1 + window.stop], 3)).logits[0].numpy()
        begin = 0 if window.start == 0 else 1 + window.first - window.start
        rows.append(logits[begin : len(logits) if window.stop == count else 1 + window.last - window.start])
    path = best_path(np.concatenate(rows), ner.crf)
    assert [token.label for token in found.tokens] == [LABELS[label] for label in path[1:-1]]
    assert "".join(LONG[token.start : token.end] for token in found.tokens) == LONG.replace(" ", "")
    assert all(before.end <= after.start for before, after in pairwise(found.tokens))


def test_labels_without_a_crf(ner: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_task(ner.file, task="sequence-labeling", tokenizer=ner.loader.directory, threads=1) as runner:
        runner.manifest = {key: value for key, value in runner.manifest.items() if key != "crf"}
        logits = ner.expected(tuple(ner.loader.get_tokenizer().encode(TEXT))).logits[0]
        assert [token.label for token in runner.predict(TEXT).tokens] == [LABELS[i] for i in logits.argmax(-1)[1:-1]]
        words = runner.predict("cats sat", whole_words=True).tokens
        assert [(token.start, token.end) for token in words] == [(0, 3), (3, 4), (5, 8)]
        assert words[0].label == words[1].label
        assert runner.predict("").tokens == ()


def test_a_flagai_crf_begins_with_label_0(folder: Path) -> None:
    from flatlm.utilities.checkpoints.directory import Checkpoint
    from flatlm.utilities.configs.crf_facts import read_crf

    make_bert(folder / "flagai", "ForTokenClassification", **named(LABELS))
    tensors = add_crf(folder / "flagai", flagai=True)
    AutoLoader("ner-crf", "flagai", folder).get_model()
    with Checkpoint.open(folder / "flagai") as checkpoint:
        crf = Crf.from_facts(read_crf(checkpoint, len(LABELS)))
    assert torch.equal(torch.from_numpy(crf.transitions), tensors["crf_layer.trans"])


def test_tasks_that_do_not_fit(masked: Made, folder: Path) -> None:
    with pytest.raises(ConfigError, match="its model is of the kind encoder; it can do masklm, embedding, classification"):
        AutoLoader("title-generation", "masklm", folder)
    with pytest.raises(RuntimeFileError, match="cannot do ner: it is an encoder with a head for masklm; it can do masklm"):
        open_task(masked.file, task="ner", tokenizer=masked.loader.directory)
    with pytest.raises(ConfigError, match="did you mean masklm"):
        AutoLoader("maskedlm", "masklm", folder)
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        AutoLoader("ner", "nowhere", folder)


def test_a_model_tuned_for_a_task_comes_first(masked: Made, folder: Path) -> None:
    make_bert(folder / "own", "Model")
    make_bert(folder / "own-ner", "ForTokenClassification", **named(LABELS))
    assert AutoLoader("ner", "own", folder).directory.name == "own-ner"
    assert AutoLoader("embedding", "own", folder).directory.name == "own"


def test_predict(ner: Made, matching: Made, masked: Made, embedding: Made, capsys: pytest.CaptureFixture[str]) -> None:
    def said(made: Made, *more: str, status: int = 0) -> str:
        assert main(["predict", str(made.file), "--tokenizer", str(made.loader.directory), "--threads", "1", *more]) == status
        printed = capsys.readouterr()
        return printed.err if status else printed.out

    result = json.loads(said(ner, "--text", TEXT, "--text", "anna", "--json"))
    assert (result["task"], [each["input"] for each in result["predictions"]]) == ("ner", [TEXT, "anna"])
    assert [token["label"] for token in result["predictions"][0]["tokens"]] == [token.label for token in ner.runner.predict(TEXT).tokens]
    assert said(matching, "--text", "the cat", "--text-pair", "a dog").startswith("match 0.")
    assert said(masked, "--text", "the [MASK] sat", "--top", "2").count(", ") == 1
    assert said(embedding, "--text", "the cat", "--text-pair", "the cat").endswith("cosine similarity 1.0000\n")
    assert "--text-pair: the task ner does not take it; it takes --whole-words" in said(ner, "--text", TEXT, "--text-pair", "x", status=2)
    assert "cannot do lm" in said(ner, "--text", TEXT, "--task", "lm", status=2)
