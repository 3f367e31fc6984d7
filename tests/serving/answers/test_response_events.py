"""What /v1/responses takes as a chat, and its events, read by the openai package's own types."""

import json
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter, ValidationError

from flatlm.serving.answers.response_events import ResponseTeller
from flatlm.serving.answers.response_request import chat_request
from flatlm.serving.answers.tools import ToolCallParser
from flatlm.serving.errors import BadRequest, EngineLost
from flatlm.serving.schemas.responses import ResponsesRequest

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4}}
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


def asked(**fields: Any) -> ResponsesRequest:
    return ResponsesRequest.model_validate({"model": "m", "input": "hello", **fields})


def written(*texts: str, reason: str = "eos", **fields: Any) -> tuple[list[Any], Response]:
    """The events, and the response of the last."""
    body = asked(**fields)
    parser, teller = ToolCallParser.of(chat_request(body)), ResponseTeller(body)
    events = list(teller.begin())
    for text in texts:
        events += teller.push(*parser.push(text))
    events += teller.push(*parser.finish())
    events += teller.end(reason=reason, stop=None, usage=USAGE)
    json.dumps(events)
    read = [EVENT.validate_python(event) for event in events]
    assert [event.sequence_number for event in read] == list(range(len(read)))
    assert events[-1]["response"] == teller.answer
    return read, read[-1].response


def test_a_text() -> None:
    events, response = written("Hel", "", "lo")
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[0].response.output == []
    assert events[2].item.content == []
    assert events[3].part.text == ""
    assert [events[6].text, events[7].part.text, events[8].item.content[0].text, response.output_text] == ["Hello"] * 4
    assert (response.status, response.output[0].status) == ("completed", "completed")
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.input_tokens_details.cached_tokens) == (7, 3, 4)
    assert len({event.item_id for event in events[3:8]} | {events[2].item.id}) == 1


def test_a_text_that_was_cut() -> None:
    events, response = written("Hel", reason="length")
    assert (events[-1].type, response.status, response.incomplete_details.reason) == (
        "response.incomplete",
        "incomplete",
        "max_output_tokens",
    )
    assert response.output[0].status == "incomplete"


def test_an_answer_without_text_is_an_empty_message() -> None:
    _, response = written()
    assert (response.output_text, len(response.output)) == ("", 1)


def test_calls() -> None:
    text = 'Let me see. <tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
    text += '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    events, response = written(*text, tools=[TOOL])
    message, first, second = response.output
    assert message.content[0].text == "Let me see. "
    assert [(call.name, json.loads(call.arguments)) for call in (first, second)] == [("weather", {"city": "Rome"}), ("weather", {})]
    assert first.call_id != second.call_id
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [(event.output_index, event.item_id, event.arguments) for event in done] == [
        (1, first.id, first.arguments),
        (2, second.id, second.arguments),
    ]
    _, alone = written(text, tools=[TOOL], parallel_tool_calls=False)
    assert [item.type for item in alone.output] == ["message", "function_call"]
    _, none = written(text, tools=[TOOL], tool_choice="none")
    assert none.output_text == text
    _, must = written('{"name": "weather", "arguments": {}}', tools=[TOOL], tool_choice="required")
    assert [item.type for item in must.output] == ["function_call"]


def test_text_after_a_call_is_a_message_of_its_own() -> None:
    teller = ResponseTeller(asked(tools=[TOOL]))
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    events = [*teller.begin(), *teller.push("one", [call]), *teller.push("two"), *teller.end(reason="eos", stop=None, usage=USAGE)]
    response = EVENT.validate_python(events[-1]).response
    assert [(item.type, item.status) for item in response.output] == [
        ("message", "completed"),
        ("function_call", "completed"),
        ("message", "completed"),
    ]
    assert [event["output_index"] for event in events if event["type"] == "response.output_item.done"] == [0, 1, 2]


def test_a_failure() -> None:
    teller = ResponseTeller(asked())
    events = [*teller.begin(), *teller.push("Hel"), *teller.fail(EngineLost("m", "ended"))]
    last = EVENT.validate_python(events[-1])
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert "the process that runs m ended" in last.response.error.message


def test_the_answer_repeats_what_was_asked() -> None:
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "object"}}
    more = {"temperature": 0.5, "top_p": 0.9, "metadata": {"a": "b"}, "text": {"format": schema}, "instructions": "be short"}
    _, response = written("hi", tools=[TOOL], tool_choice={"type": "function", "name": "weather"}, max_output_tokens=9, **more)
    assert (response.temperature, response.top_p, response.metadata, response.max_output_tokens) == (0.5, 0.9, {"a": "b"}, 9)
    assert response.text.format.schema_ == {"type": "object"}
    assert (response.tool_choice.name, response.tools[0].name, response.instructions) == ("weather", "weather", "be short")


def test_an_answer_can_be_sent_back() -> None:
    _, response = written('I look. <tool_call>{"name": "weather", "arguments": {}}</tool_call>', tools=[TOOL])
    call = response.output[1]
    items = [
        {"role": "developer", "content": "be short"},
        {"role": "user", "content": [{"type": "input_text", "text": "how is "}, {"type": "input_text", "text": "Rome?"}]},
        *(item.model_dump(exclude_unset=True) for item in response.output),
        {"type": "function_call_output", "call_id": call.call_id, "output": [{"type": "input_text", "text": "sunny"}]},
    ]
    chat = chat_request(asked(input=items, instructions="be kind", tools=[TOOL], tool_choice="auto"))
    assert chat.model_dump(exclude_none=True, include={"messages"})["messages"] == [
        {"role": "system", "content": "be kind"},
        {"role": "developer", "content": "be short"},
        {"role": "user", "content": "how is Rome?"},
        {
            "role": "assistant",
            "content": "I look. ",
            "tool_calls": [{"id": call.call_id, "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": call.call_id},
    ]
    assert chat.tools is not None
    assert (chat.tools[0].function.name, chat.tools[0].function.parameters) == ("weather", TOOL["parameters"])


def test_how_a_text_is_written() -> None:
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    chat = chat_request(asked(max_output_tokens=9, temperature=0.0, top_p=0.5, text={"format": schema}, tool_choice="none"))
    assert (chat.max_tokens, chat.temperature, chat.top_p, chat.tool_choice) == (9, 0.0, 0.5, "none")
    assert chat.response_format is not None
    assert chat.response_format.model_dump(by_alias=True, exclude_none=True) == {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True},
    }


@pytest.mark.parametrize(
    ("fields", "place", "message"),
    [
        ({"store": True}, ("store",), "nothing is stored"),
        ({"previous_response_id": "resp_1"}, ("previous_response_id",), "keeps no state"),
        ({"conversation": "c"}, ("conversation",), "keeps no state"),
        ({"background": True}, ("background",), "while its request waits"),
        ({"truncation": "auto"}, ("truncation",), "never cut"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, ("input", 0, "content", 0), "input_image"),
        ({"input": [{"type": "reasoning", "summary": []}]}, ("input", 0), "reasoning"),
        ({"input": [{"role": "robot", "content": "x"}]}, ("input", 0, "role"), "'system', 'developer'"),
        ({"input": [{"role": "user", "content": 5}]}, ("input", 0, "content"), "list"),
        ({"tools": [{"type": "web_search"}]}, ("tools", 0), "web_search"),
        ({"tool_choice": "perhaps"}, ("tool_choice",), "'none', 'auto' or 'required'"),
        ({"temperature": float("nan")}, ("temperature",), "finite"),
        ({"max_output_tokens": 0}, ("max_output_tokens",), "greater than or equal to 1"),
        ({"voice": "alto"}, ("voice",), "not permitted"),
    ],
)
def test_what_is_refused_is_named(fields: dict[str, Any], place: tuple[str | int, ...], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        asked(**fields)
    (error,) = caught.value.errors()
    assert tuple(part for part in error["loc"] if not str(part).startswith("(")) == place
    assert message in error["msg"]


def test_an_input_without_a_turn() -> None:
    with pytest.raises(BadRequest, match="input is empty"):
        chat_request(asked(input=[]))
