"""/v1/cancel: answers that are ended by their ids."""

from typing import Any

import httpx
import openai
import pytest

PROMPT = "Once upon a time"
ASKED: dict[str, Any] = {"model": "demo", "max_tokens": 450, "temperature": 1, "extra_body": {"ignore_eos": True}}


def test_an_answer_is_ended_by_its_id(client: openai.OpenAI, http: httpx.Client) -> None:
    stream = client.chat.completions.create(messages=[{"role": "user", "content": PROMPT}], stream=True, **ASKED)
    first = next(iter(stream))
    assert http.post("/v1/cancel", json={"id": first.id}).json() == {"id": first.id, "cancelled": True}
    rest = list(stream)
    assert rest[-1].choices[0].finish_reason == "stop"
    assert http.post("/v1/cancel", json={"id": first.id}).status_code == 404
    assert http.get("/health").json()["models"][0]["busy"] == 0


def test_the_other_ways_to_ask(client: openai.OpenAI, http: httpx.Client) -> None:
    completion = client.completions.create(prompt=PROMPT, stream=True, **ASKED)
    first = next(iter(completion))
    assert http.post("/v1/cancel", json={"id": first.id}).status_code == 200
    assert list(completion)[-1].choices[0].finish_reason == "stop"
    response = client.responses.create(model="demo", input=PROMPT, stream=True)
    begun = next(iter(response))
    http.post("/v1/cancel", json={"id": begun.response.id})
    assert list(response)[-1].response.status == "completed"


def test_each_of_several_texts_is_ended(client: openai.OpenAI, http: httpx.Client) -> None:
    stream = client.chat.completions.create(messages=[{"role": "user", "content": PROMPT}], stream=True, n=2, **ASKED)
    first = next(iter(stream))
    assert http.post("/v1/cancel", json={"id": first.id}).status_code == 200
    ended = {choice.index for chunk in stream for choice in chunk.choices if choice.finish_reason == "stop"}
    assert ended == {0, 1}


@pytest.mark.parametrize(
    ("body", "status"), [({"id": "chatcmpl-0"}, 404), ({"id": ""}, 404), ({}, 400), ({"id": 5}, 400), ({"id": "x", "all": True}, 400)]
)
def test_unknown_ids(http: httpx.Client, body: dict[str, Any], status: int) -> None:
    answer = http.post("/v1/cancel", json=body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
