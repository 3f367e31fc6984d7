"""/v1/embeddings and /v1/rerank, asked by the openai package and over HTTP, of a server that serves a decoder beside encoders."""

import base64
import concurrent.futures
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from flatlm.serving.engines.messages import EngineSpec
from flatlm.serving.running import Served
from flatlm.tasks.runner import TaskRunner, open_task
from tests.serving.conftest import Running, running
from tests.serving.encoder_files import EncoderFiles

TEXTS = ["the cat sat", "a dog ran to rome . the cat sat on a mat", "我在北京大学"]
LONG = "the cat sat on a mat " * 5


@pytest.fixture(scope="module")
def reader(demo: Served, encoder_files: EncoderFiles) -> Iterator[Running]:
    """Models: vectors, hidden, pairs (encoders), demo (a decoder)."""

    def encoder(name: str, file: Any) -> Served:
        return Served(EngineSpec(file, tokenizer=encoder_files.tokenizer, threads=1), (name,))

    encoders = [
        encoder("vectors", encoder_files.embedding),
        encoder("hidden", encoder_files.features),
        encoder("pairs", encoder_files.pairs),
    ]
    with running(*encoders, demo, max_queue=2) as found:
        yield found


@pytest.fixture(scope="module")
def http(reader: Running) -> Iterator[httpx.Client]:
    with reader.http() as client:
        yield client


@pytest.fixture(scope="module")
def task(encoder_files: EncoderFiles) -> Iterator[TaskRunner]:
    with open_task(encoder_files.embedding, tokenizer=encoder_files.tokenizer, threads=1) as found:
        yield found


def refused(http: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    answer = http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_vectors_are_those_of_predict_to_the_bit(reader: Running, task: TaskRunner, encoding: Any) -> None:
    options = {} if encoding is None else {"encoding_format": encoding}  # without it, the package asks for base64
    answer = reader.client().embeddings.create(model="vectors", input=TEXTS, **options)
    expected = [task.predict(text).vector for text in TEXTS]
    vectors = [each.embedding for each in answer.data]
    if encoding == "base64":
        assert isinstance(vectors[0], str)
        vectors = [np.frombuffer(base64.b64decode(vector), "<f4").tolist() for vector in vectors]
    assert [tuple(vector) for vector in vectors] == expected
    assert [each.index for each in answer.data] == [0, 1, 2]
    tokens = sum(len(task.tokenizer.encode(text)) for text in TEXTS)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens, answer.model) == (tokens, tokens, "vectors")


def test_one_text_and_token_ids(reader: Running, task: TaskRunner) -> None:
    client = reader.client()
    expected = task.predict(TEXTS[0]).vector
    ids = task.tokenizer.encode(TEXTS[0])
    for given in (TEXTS[0], ids, [ids]):
        (found,) = client.embeddings.create(model="vectors", input=given, encoding_format="float").data
        assert tuple(found.embedding) == expected


def test_fewer_dimensions_are_of_length_1(reader: Running, task: TaskRunner) -> None:
    (found,) = reader.client().embeddings.create(model="vectors", input="the cat", dimensions=5, encoding_format="float").data
    expected = np.array(task.predict("the cat").vector[:5])
    np.testing.assert_allclose(found.embedding, expected / np.linalg.norm(expected), atol=1e-6)
    with pytest.raises(openai.BadRequestError, match="gives vectors of 32 dimensions, not of more"):
        reader.client().embeddings.create(model="vectors", input="the cat", dimensions=33)


def test_hidden_states_give_their_mean(reader: Running, task: TaskRunner) -> None:
    (found,) = reader.client().embeddings.create(model="hidden", input=TEXTS[1], encoding_format="float").data
    np.testing.assert_allclose(found.embedding, task.predict(TEXTS[1]).vector, atol=1e-5)


def test_embed_is_the_same(http: httpx.Client) -> None:
    body = {"model": "vectors", "input": TEXTS}
    assert http.post("/v1/embed", json=body).json() == http.post("/v1/embeddings", json=body).json()


def test_long_texts_are_refused_or_cut(http: httpx.Client, task: TaskRunner) -> None:
    error = refused(http, "/v1/embeddings", model="vectors", input=["the cat", LONG])
    assert error["message"].startswith("input 1 has 32 tokens, and the model reads at most 24")
    assert error["param"] == "input"
    cut = http.post("/v1/embeddings", json={"model": "vectors", "input": LONG, "truncate": True}).json()
    assert tuple(cut["data"][0]["embedding"]) == task.predict(LONG, truncate=True).vector


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"input": "x", "model": "demo"}, "model", "the model demo is a decoder, which writes texts; this needs an encoder"),
        ({"input": "x", "model": "pairs"}, "model", "pairs is an encoder exported for classification, which gives no vectors"),
        ({"input": []}, "input", "at least 1"),
        ({"input": [[]]}, "input[0]", "at least 1"),
        ({"input": [1, "x"]}, "input[1]", "integer"),
        ({"input": ["x", 1]}, "input[1]", "string"),
        ({"input": [1, 2.5]}, "input[1]", "integer"),
        ({"input": [[64]]}, "input", "token 64 is outside the model's vocabulary of 64"),
        ({"input": 5}, "input", "string"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "x", "dimensions": 0}, "dimensions", "greater than or equal to 1"),
        ({"input": "x", "pooling": "cls"}, "pooling", "unknown field"),
        ({"input": ["x"] * 2049}, "input", "at most 2048"),
    ],
)
def test_what_is_refused_is_named(http: httpx.Client, body: dict[str, Any], param: str, message: str) -> None:
    error = refused(http, "/v1/embeddings", **{"model": "vectors", **body})
    assert (error["param"], message in error["message"]) == (param, True), error


def test_a_decoder_is_asked_for_and_an_encoder_found(http: httpx.Client) -> None:
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/responses", {"input": "x"}),
    ):
        error = refused(http, path, model="vectors", **body)
        assert error[
            "message"
        ] == "the model vectors is an encoder exported for embedding: it reads texts and writes none; this needs a " + ("model that writes")


def test_the_models_are_listed_and_well(reader: Running, http: httpx.Client) -> None:
    assert {model.id for model in reader.client().models.list()} == {"vectors", "hidden", "pairs", "demo"}
    assert http.get("/health").json()["status"] == "ok"


def test_pairs_are_ranked_by_a_classifier(http: httpx.Client, encoder_files: EncoderFiles) -> None:
    with open_task(encoder_files.pairs, task="semantic-matching", tokenizer=encoder_files.tokenizer, threads=1) as task:
        expected = [task.predict("the dog", pair=text).probability for text in TEXTS]
    answer = http.post("/v1/rerank", json={"model": "pairs", "query": "the dog", "documents": TEXTS}).json()
    order = sorted(range(3), key=lambda place: -expected[place])
    assert answer["method"] == "sequence_pair"
    assert [(each["index"], each["relevance_score"]) for each in answer["results"]] == [(place, expected[place]) for place in order]
    assert all("document" not in each for each in answer["results"])


def test_vectors_rank_by_their_cosine(http: httpx.Client, task: TaskRunner) -> None:
    expected = [task.predict("the dog", pair=text).similarity for text in TEXTS]
    documents = [TEXTS[0], {"text": TEXTS[1]}, TEXTS[2]]
    body = {"model": "vectors", "query": "the dog", "documents": documents, "top_n": 2, "return_documents": True}
    answer = http.post("/v1/rerank", json=body).json()
    order = sorted(range(3), key=lambda place: -expected[place])[:2]
    assert answer["method"] == "cosine"
    assert answer["results"] == [
        {"index": place, "relevance_score": expected[place], "document": {"text": TEXTS[place]}} for place in order
    ]
    assert answer["usage"]["total_tokens"] == sum(len(task.tokenizer.encode(text)) for text in ("the dog", *TEXTS))


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"model": "demo"}, "model", "is a decoder"),
        ({"documents": []}, "documents", "at least 1"),
        ({"documents": [{"title": "x"}]}, "documents[0].title", "unknown field"),
        ({"documents": ["x", LONG]}, "documents", "the query with document 1 has 35 tokens, and the model reads at most 24"),
        ({"top_n": 0}, "top_n", "greater than or equal to 1"),
    ],
)
def test_what_is_not_ranked(http: httpx.Client, body: dict[str, Any], param: str, message: str) -> None:
    error = refused(http, "/v1/rerank", **{"model": "pairs", "query": "the dog", "documents": TEXTS, **body})
    assert (error["param"], message in error["message"]) == (param, True), error


def test_many_requests_at_once(reader: Running, task: TaskRunner) -> None:
    """More than there are places, 2 of them waiting: 429, and the others' answers are their own."""

    def ask(text: str) -> Any:
        with reader.http() as http:
            return text, http.post("/v1/embeddings", json={"model": "vectors", "input": [text] * 200})

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, TEXTS * 4))
    assert {answer.status_code for _, answer in answers} <= {200, 429}
    whole = [(text, answer.json()) for text, answer in answers if answer.status_code == 200]
    assert len(whole) >= 4
    for text, answer in whole:
        assert all(tuple(each["embedding"]) == task.predict(text).vector for each in answer["data"][::50])


def test_clients_that_leave_leave_nothing_behind(reader: Running) -> None:
    process = reader.models["vectors"].process
    body = {"model": "vectors", "input": ["the cat sat on a mat with a dog"] * 2048}
    for _ in range(5):
        with reader.http() as client, pytest.raises(httpx.ReadTimeout):
            client.post("/v1/embeddings", json=body, timeout=httpx.Timeout(5, read=0.05))
        ends_at = time.monotonic() + 20
        while process.busy and time.monotonic() < ends_at:
            time.sleep(0.01)
        assert process.busy == 0
    assert reader.client().embeddings.create(model="vectors", input="the cat").data[0].embedding


def test_an_encoder_whose_process_is_lost_comes_back(reader: Running) -> None:
    process = reader.models["hidden"].process
    os.kill(process.pid, signal.SIGKILL)
    ends_at = time.monotonic() + 60
    while process.restarts == 0 and time.monotonic() < ends_at:
        time.sleep(0.05)
    assert reader.client().embeddings.create(model="hidden", input="the cat").data[0].embedding
