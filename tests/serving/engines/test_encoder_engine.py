"""An encoder's process, without the process: the same numbers as the tasks', and what it refuses."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatlm.errors import RuntimeFileError
from flatlm.serving.engines import encoder_engine
from flatlm.serving.engines.encoder_engine import EncoderEngine, served_task
from flatlm.tasks.runner import open_task
from tests.serving.encoder_files import EncoderFiles

TEXTS = ("the cat sat", "a dog ran to rome . the cat sat on a mat", "我在北京大学")
LONG = "the cat sat on a mat " * 5


@pytest.fixture(scope="module")
def embedding(encoder_files: EncoderFiles) -> Iterator[EncoderEngine]:
    engine = EncoderEngine.open(encoder_files.embedding, encoder_files.tokenizer, threads=1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def pairs(encoder_files: EncoderFiles) -> Iterator[EncoderEngine]:
    engine = EncoderEngine.open(encoder_files.pairs, encoder_files.tokenizer, threads=1)
    yield engine
    engine.close()


def test_vectors_are_the_tasks_own_to_the_bit(embedding: EncoderEngine, encoder_files: EncoderFiles) -> None:
    with open_task(encoder_files.embedding, tokenizer=encoder_files.tokenizer, threads=1) as task:
        expected = [task.predict(text).vector for text in TEXTS]
        ids = [task.tokenizer.encode(text) for text in TEXTS]
    found = list(embedding.embed(TEXTS))
    assert [tuple(map(float, each.vector)) for each in found] == expected
    assert [each.tokens for each in found] == list(map(len, ids))
    assert embedding.encoder.dimensions == len(expected[0]) == 32
    given = list(embedding.embed(ids))
    assert [each.vector.tobytes() for each in given] == [each.vector.tobytes() for each in found]


def test_the_mean_of_hidden_states_is_a_vector(embedding: EncoderEngine, encoder_files: EncoderFiles) -> None:
    """Without Pooling in a modules.json, the embedding's own pooling is the mean too."""
    engine = EncoderEngine.open(encoder_files.features, encoder_files.tokenizer, threads=1)
    found, expected = (np.stack([each.vector for each in own.embed(TEXTS)]) for own in (engine, embedding))
    engine.close()
    assert (engine.encoder.head, engine.encoder.dimensions) == ("features", 32)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_pairs_are_scored_by_the_classifier(pairs: EncoderEngine, encoder_files: EncoderFiles) -> None:
    with open_task(encoder_files.pairs, task="semantic-matching", tokenizer=encoder_files.tokenizer, threads=1) as task:
        expected = [task.predict("the dog", pair=text).probability for text in TEXTS]
        tokens = [len(task.tokenizer.encode_text("the dog", text).ids) for text in TEXTS]
    found = list(pairs.score("the dog", TEXTS))
    assert [each.relevance for each in found] == expected
    assert [each.tokens for each in found] == tokens
    assert (pairs.encoder.labels, pairs.encoder.embeds) == (("differ", "match"), False)


def test_one_label_scores_by_its_logit(encoder_files: EncoderFiles) -> None:
    with open_task(encoder_files.one, task="semantic-matching", tokenizer=encoder_files.tokenizer, threads=1) as task:
        expected = [task.predict("the dog", pair=text).probability for text in TEXTS]
    engine = EncoderEngine.open(encoder_files.one, encoder_files.tokenizer, threads=1)
    assert [each.relevance for each in engine.score("the dog", TEXTS)] == expected
    engine.close()
    assert len(set(expected)) == 3


def test_without_a_classifier_documents_are_scored_by_cosine(embedding: EncoderEngine, encoder_files: EncoderFiles) -> None:
    with open_task(encoder_files.embedding, tokenizer=encoder_files.tokenizer, threads=1) as task:
        expected = [task.predict("the dog", pair=text).similarity for text in TEXTS]
        tokens = sum(len(task.tokenizer.encode(text)) for text in ("the dog", *TEXTS))
    found = list(embedding.score("the dog", TEXTS))
    assert [each.relevance for each in found] == expected
    assert sum(each.tokens for each in found) == tokens


def test_long_texts_are_refused_or_cut(embedding: EncoderEngine, pairs: EncoderEngine, encoder_files: EncoderFiles) -> None:
    with pytest.raises(RuntimeFileError, match=r"^input 1 has 32 tokens, and the model reads at most 24"):
        next(embedding.embed(("the cat", LONG)))
    with pytest.raises(RuntimeFileError, match=r"^the query with document 0 has 35 tokens, and the model reads at most 24"):
        next(pairs.score("the dog", (LONG,)))
    with open_task(encoder_files.embedding, tokenizer=encoder_files.tokenizer, threads=1) as task:
        expected = task.predict(LONG, truncate=True).vector
    (cut,) = embedding.embed((LONG,), truncate=True)
    assert (tuple(map(float, cut.vector)), cut.tokens) == (expected, 24)
    (scored,) = pairs.score("the dog", (LONG,), truncate=True)
    assert scored.tokens == 24


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ((2, 64, 3), "input 0: token 64 is outside the model's vocabulary of 64"),
        ((2, -1, 3), "token -1 is outside"),
        ((), "input 0 has no tokens"),
        ([2] * 25, "input 0 has 25 tokens"),
    ],
)
def test_tokens_that_cannot_be_read(embedding: EncoderEngine, ids: tuple[int, ...], message: str) -> None:
    with pytest.raises(RuntimeFileError, match=message):
        next(embedding.embed((ids,)))


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ({}, "is no encoder: embeddings and scores are given by encoders exported for embedding, features, classification"),
        ({"kind": "encoder", "task": "masklm"}, "is an encoder exported for masklm"),
        ({"kind": "encoder", "task": "classification", "labels": ["a", "b", "c"]}, "is a classifier of 3 labels"),
    ],
)
def test_files_that_answer_nothing_here_are_refused(monkeypatch: pytest.MonkeyPatch, manifest: dict[str, Any], message: str) -> None:
    monkeypatch.setattr(encoder_engine, "read_manifest", lambda file: manifest)
    with pytest.raises(RuntimeFileError, match=message):
        served_task(Path("file.tflite"))
