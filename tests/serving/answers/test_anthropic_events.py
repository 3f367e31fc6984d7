"""What /v1/messages takes as a chat, and its events, read by the anthropic package's own types."""

import json
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter, ValidationError

from flatlm.serving.answers.anthropic_events import MessageTeller
from flatlm.serving.answers.anthropic_request import chat_request
from flatlm.serving.answers.tools import ToolCallParser
from flatlm.serving.errors import BadRequest, EngineLost
from flatlm.serving.schemas.anthropic import CountRequest, MessagesRequest

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4}}
TOOL = {"name": "weather", "description": "of a city", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
HELLO = [{"role": "user", "content": "hello"}]


def asked(**fields: Any) -> MessagesRequest:
    return MessagesRequest.model_validate({"model": "m", "max_tokens": 9, "messages": HELLO, **fields})


def written(*texts: str, reason: str = "eos", stop: str | None = None, **fields: Any) -> tuple[list[Any], Message]:
    """The events, and the message that they tell of."""
    body = asked(**fields)
    parser, teller = ToolCallParser.of(chat_request(body)), MessageTeller(body, prompt_tokens=7)
    events = list(teller.begin())
    for text in texts:
        events += teller.push(*parser.push(text))
    events += teller.push(*parser.finish())
    events += teller.end(reason=reason, stop=stop, usage=USAGE)
    json.dumps(events)
    return [EVENT.validate_python(event) for event in events], Message.model_validate(teller.answer)


def test_a_text() -> None:
    events, message = written("Hel", "", "lo")
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert (events[0].message.content, events[0].message.usage.input_tokens, events[0].message.stop_reason) == ([], 7, None)
    assert "".join(event.delta.text for event in events[2:4]) == message.content[0].text == "Hello"
    assert (events[5].delta.stop_reason, events[5].usage.output_tokens) == (message.stop_reason, 3) == ("end_turn", 3)
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (3, 4)


@pytest.mark.parametrize(
    ("fields", "reason", "sequence"),
    [
        ({"reason": "length"}, "max_tokens", None),
        ({"reason": "context"}, "max_tokens", None),
        ({"reason": "stop", "stop": "END"}, "stop_sequence", "END"),
        ({"reason": "stop"}, "end_turn", None),
    ],
)
def test_why_a_text_ended(fields: dict[str, Any], reason: str, sequence: str | None) -> None:
    events, message = written("Hel", **fields)
    assert (message.stop_reason, message.stop_sequence) == (reason, sequence)
    assert (events[-2].delta.stop_reason, events[-2].delta.stop_sequence) == (reason, sequence)


def test_an_answer_without_text_has_no_blocks() -> None:
    events, message = written()
    assert message.content == []
    assert [event.type for event in events] == ["message_start", "message_delta", "message_stop"]


def test_calls() -> None:
    text = 'I look. <tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
    text += '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    events, message = written(*text, tools=[TOOL])
    assert (message.content[0].text, message.stop_reason) == ("I look. ", "tool_use")
    assert [(block.name, block.input) for block in message.content[1:]] == [("weather", {"city": "Rome"}), ("weather", {})]
    assert message.content[1].id != message.content[2].id
    told = [event for event in events if event.type == "content_block_delta" and event.delta.type == "input_json_delta"]
    assert [(event.index, json.loads(event.delta.partial_json)) for event in told] == [(1, {"city": "Rome"}), (2, {})]
    _, alone = written(text, tools=[TOOL], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [block.type for block in alone.content] == ["text", "tool_use"]
    _, none = written(text, tools=[TOOL], tool_choice={"type": "none"})
    assert (none.content[0].text, none.stop_reason) == (text, "end_turn")


@pytest.mark.parametrize(("arguments", "expected"), [('"Rome"', "Rome"), ("[1]", [1]), ('"[1]"', [1])])
def test_arguments_that_are_no_object(arguments: str, expected: Any) -> None:
    events, message = written(f'<tool_call>{{"name": "weather", "arguments": {arguments}}}</tool_call>', tools=[TOOL])
    assert message.content[0].input == {"arguments": expected}
    assert json.loads(events[2].delta.partial_json) == message.content[0].input


def test_a_failure() -> None:
    (event,) = MessageTeller(asked(), prompt_tokens=1).fail(EngineLost("m", "ended"))
    assert (event["type"], event["error"]["type"]) == ("error", "api_error")
    assert "the process that runs m ended" in event["error"]["message"]


def test_an_answer_can_be_sent_back() -> None:
    _, message = written('I look. <tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>', tools=[TOOL])
    call = message.content[1].id
    result = {"type": "tool_result", "tool_use_id": call, "content": [{"type": "text", "text": "sunny"}], "is_error": False}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "how is ", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": "Rome?"},
        {"role": "assistant", "content": [block.model_dump(exclude_unset=True) for block in message.content]},
        {"role": "user", "content": [result, {"type": "text", "text": "and now?"}]},
    ]
    chat = chat_request(asked(messages=messages, system=[{"type": "text", "text": "be kind"}], tools=[TOOL]))
    called = {"id": call, "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    assert chat.model_dump(exclude_none=True, include={"messages"})["messages"] == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "how is \nRome?"},
        {"role": "assistant", "content": "I look. ", "tool_calls": [called]},
        {"role": "tool", "content": "sunny", "tool_call_id": call},
        {"role": "user", "content": "and now?"},
    ]
    assert chat.tools is not None
    assert (chat.tools[0].function.description, chat.tools[0].function.parameters) == ("of a city", TOOL["input_schema"])


def test_how_a_text_is_written() -> None:
    schema = {"type": "object"}
    chat = chat_request(
        asked(
            temperature=0.0,
            top_p=0.5,
            top_k=3,
            stop_sequences=["END"],
            tools=[TOOL],
            tool_choice={"type": "any"},
            output_config={"format": {"type": "json_schema", "schema": schema}},
        )
    )
    assert (chat.max_tokens, chat.temperature, chat.top_p, chat.top_k, chat.stops) == (9, 0.0, 0.5, 3, ("END",))
    assert chat.tool_choice == "required"
    assert chat.response_format is not None
    assert chat.response_format.model_dump(by_alias=True)["json_schema"]["schema"] == schema
    named = chat_request(asked(tools=[TOOL], tool_choice={"type": "tool", "name": "weather"})).tool_choice
    assert named is not None and not isinstance(named, str)
    assert named.function.name == "weather"


def test_counting_takes_what_the_answer_is_made_of() -> None:
    counted = CountRequest.model_validate({"model": "m", "messages": HELLO, "system": "be kind", "tools": [TOOL]})
    assert chat_request(counted).messages == chat_request(asked(system="be kind", tools=[TOOL])).messages


@pytest.mark.parametrize(
    ("fields", "place", "message"),
    [
        ({"max_tokens": None}, ("max_tokens",), "integer"),
        ({"messages": [{"role": "system", "content": "x"}]}, ("messages", 0, "role"), "'user' or 'assistant'"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, ("messages", 0, "content", 0), "'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, ("messages", 0, "content", 0), "'document'"),
        ({"messages": []}, ("messages",), "at least 1"),
        ({"system": [{"type": "image"}]}, ("system", 0), "'image'"),
        ({"thinking": {"type": "enabled"}}, ("thinking", "type"), "do not think"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, ("tools", 0), "web_search"),
        ({"temperature": 1.5}, ("temperature",), "less than or equal to 1"),
        ({"container": "c"}, ("container",), "nothing is run"),
        ({"stop_sequences": [""]}, ("stop_sequences", 0), "at least 1"),
        ({"mcp_servers": []}, ("mcp_servers",), "not permitted"),
    ],
)
def test_what_is_refused_is_named(fields: dict[str, Any], place: tuple[str | int, ...], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        asked(**fields)
    error = next(iter(caught.value.errors()))
    assert tuple(part for part in error["loc"] if not str(part).startswith("(")) == place
    assert message in error["msg"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": [*HELLO, {"role": "assistant", "content": "I"}]}, "end with a user's"),
        ({"messages": [{"role": "user", "content": []}]}, "without content"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "x", "input": {}}]}]}, "are the assistant's"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "1"}]}, *HELLO]},
            "are the user's",
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "names one"),
    ],
)
def test_turns_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        chat_request(asked(**fields))
