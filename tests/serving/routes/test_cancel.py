"""/v1/cancel: answers that are ended by their ids."""

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

import anthropic
import httpx
import openai
import pytest

PROMPT = "Once upon a time"
ASKED: dict[str, Any] = {"model": "demo", "max_tokens": 450, "temperature": 1, "extra_body": {"ignore_eos": True}}


def ended(http: httpx.Client, ask: Callable[[], Iterable[Any]], id_of: Callable[[Any], str] = attrgetter("id")) -> tuple[str, list[Any]]:
    """The id of an answer that was ended by it, and what came of the answer after its first event.

    The model is fast: an answer that had ended by itself is asked for again.
    """
    for _ in range(5):
        events = iter(ask())
        own = id_of(next(events))
        answer = http.post("/v1/cancel", json={"id": own})
        rest = list(events)
        if answer.status_code == 200:
            assert answer.json() == {"id": own, "cancelled": True}
            return own, rest
    raise AssertionError(answer.text)


def test_an_answer_is_ended_by_its_id(client: openai.OpenAI, http: httpx.Client) -> None:
    messages: Any = [{"role": "user", "content": PROMPT}]
    own, rest = ended(http, lambda: client.chat.completions.create(messages=messages, stream=True, **ASKED))
    assert rest[-1].choices[0].finish_reason == "stop"
    assert http.post("/v1/cancel", json={"id": own}).status_code == 404
    assert http.get("/health").json()["models"][0]["busy"] == 0


def test_the_other_ways_to_ask(client: openai.OpenAI, http: httpx.Client) -> None:
    _, rest = ended(http, lambda: client.completions.create(prompt=PROMPT, stream=True, **ASKED))
    assert rest[-1].choices[0].finish_reason == "stop"
    _, rest = ended(http, lambda: client.responses.create(model="demo", input=PROMPT, stream=True), attrgetter("response.id"))
    assert rest[-1].response.status == "completed"
    with anthropic.Anthropic(base_url=str(http.base_url), api_key="none") as claude:
        asked: Any = {"model": "demo", "max_tokens": 450, "messages": [{"role": "user", "content": PROMPT}]}
        _, rest = ended(http, lambda: claude.messages.create(**asked, stream=True), attrgetter("message.id"))
    assert rest[-2].delta.stop_reason == "end_turn"


def test_each_of_several_texts_is_ended(client: openai.OpenAI, http: httpx.Client) -> None:
    messages: Any = [{"role": "user", "content": PROMPT}]
    _, rest = ended(http, lambda: client.chat.completions.create(messages=messages, stream=True, n=2, **ASKED))
    assert {choice.index for chunk in rest for choice in chunk.choices if choice.finish_reason == "stop"} == {0, 1}


@pytest.mark.parametrize(
    ("body", "status"), [({"id": "chatcmpl-0"}, 404), ({"id": ""}, 404), ({}, 400), ({"id": 5}, 400), ({"id": "x", "all": True}, 400)]
)
def test_unknown_ids(http: httpx.Client, body: dict[str, Any], status: int) -> None:
    answer = http.post("/v1/cancel", json=body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
