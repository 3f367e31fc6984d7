"""/v1/responses, asked by the openai package."""

import json
from typing import Any

import httpx
import openai
import pytest

TOOL = {
    "type": "function",
    "name": "weather",
    "description": "of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Paris"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
PROMPT = "Once upon a time"


def test_an_answer_is_that_of_chat_completions(client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(model="demo", messages=[{"role": "user", "content": PROMPT}], max_tokens=30, temperature=0)
    answer = client.responses.create(model="demo", input=PROMPT, max_output_tokens=30, temperature=0)
    assert answer.output_text == chat.choices[0].message.content
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage is not None and chat.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (chat.usage.prompt_tokens, 30)
    assert answer.model == "demo"


def test_instructions_and_items_are_a_conversation(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "system", "content": "Once "}, {"role": "user", "content": "upon a"}, {"role": "user", "content": " time"}]
    chat = client.chat.completions.create(model="demo", messages=messages, max_tokens=20, seed=3)
    items: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "upon"}, {"type": "input_text", "text": " a"}]},
        {"type": "message", "role": "user", "content": " time"},
    ]
    answer = client.responses.create(model="demo", instructions="Once ", input=items, max_output_tokens=20, temperature=0)
    greedy = client.chat.completions.create(model="demo", messages=messages, max_tokens=20, temperature=0)
    assert answer.output_text == greedy.choices[0].message.content
    assert answer.usage.input_tokens == chat.usage.prompt_tokens


def test_a_stream_tells_the_same_answer(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="demo", input=PROMPT, max_output_tokens=40, temperature=0)
    events = list(client.responses.create(model="demo", input=PROMPT, max_output_tokens=40, temperature=0, stream=True))
    assert [event.type for event in events[:4]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == events[-1].response.output_text == whole.output_text
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.usage.output_tokens == 40
    assert {event.response.id for event in events if hasattr(event, "response")} == {events[0].response.id}


def test_the_packages_own_reader_of_streams(client: openai.OpenAI) -> None:
    with client.responses.stream(model="demo", input=PROMPT, temperature=0) as stream:
        final = stream.get_final_response()
    assert final.status == "completed"
    assert final.output_text


def test_a_schema_is_kept(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"name": {"enum": ["Lily", "Tom"]}}, "required": ["name"], "additionalProperties": False}
    text: Any = {"format": {"type": "json_schema", "name": "child", "schema": schema}}
    answer = client.responses.create(model="demo", input=PROMPT, text=text, temperature=0)
    assert json.loads(answer.output_text)["name"] in ("Lily", "Tom")
    assert answer.status == "completed"


def test_a_call_that_must_be(client: openai.OpenAI) -> None:
    options: Any = {"model": "demo", "tools": [TOOL], "tool_choice": "required", "temperature": 0}
    answer = client.responses.create(input=PROMPT, **options)
    (call,) = answer.output
    assert (call.type, call.name) == ("function_call", "weather")
    assert json.loads(call.arguments)["city"] in ("Rome", "Paris")
    events = list(client.responses.create(input=PROMPT, stream=True, **options))
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    assert json.loads(done.arguments)["city"] in ("Rome", "Paris")
    again: Any = [
        {"role": "user", "content": PROMPT},
        *answer.output,
        {"type": "function_call_output", "call_id": call.call_id, "output": "5"},
    ]
    assert client.responses.create(model="demo", input=again, tools=[TOOL], max_output_tokens=5, temperature=0).output_text


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"store": True}, "store", "nothing is stored"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "keeps no state"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]", "'input_image'"),
        ({"input": []}, "input", "empty"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "web_search"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"voice": "alto"}, "voice", "unknown field"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": 5}}}}, None, "schema"),
    ],
)
def test_what_is_refused_is_named(http: httpx.Client, fields: dict[str, Any], param: str | None, message: str) -> None:
    for stream in (False, True):
        answer = http.post("/v1/responses", json={"model": "demo", "input": PROMPT, "stream": stream, **fields})
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert (error["param"], message in error["message"]) == (param, True), error


def test_an_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'x' is not served here"):
        client.responses.create(model="x", input=PROMPT)
