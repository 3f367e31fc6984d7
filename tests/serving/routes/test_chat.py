import asyncio
import json
import math
import re
from typing import Any

import httpx
import openai
import pytest

from tests.serving.conftest import Running

MESSAGES = [{"role": "system", "content": "Once upon"}, {"role": "user", "content": [{"type": "text", "text": " a time"}]}]
ANIMALS = {"type": "object", "properties": {"animal": {"enum": ["cat", "dog"]}}, "required": ["animal"], "additionalProperties": False}
TOOLS = [
    {"type": "function", "function": {"name": "find", "description": "Finds it.", "parameters": ANIMALS}},
    {"type": "function", "function": {"name": "feed", "parameters": ANIMALS}},
]


def ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**{"model": "demo", "messages": MESSAGES, "max_tokens": 60, "temperature": 0, **fields})


def streamed(client: openai.OpenAI, **fields: Any) -> tuple[str, list[Any], Any]:
    """The text of a stream, its calls, and the last choice."""
    text, calls, last = "", list[Any](), None
    for chunk in ask(client, stream=True, **fields):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            calls += choice.delta.tool_calls or []
            last = choice
    return text, calls, last


def test_a_conversation_is_answered(client: openai.OpenAI) -> None:
    answer = ask(client, max_completion_tokens=30)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 30


def test_a_stream_is_the_same_text(client: openai.OpenAI) -> None:
    options = {"max_tokens": 60, "seed": 5, "temperature": 1}
    whole = ask(client, **options)
    chunks = list(ask(client, **options, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_n_answers_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    options = {"max_tokens": 20, "temperature": 1}
    several = ask(client, seed=7, n=3, **options)
    alone = [ask(client, seed=7 + place, **options).choices[0].message.content for place in range(3)]
    assert [choice.message.content for choice in several.choices] == alone
    assert len(set(alone)) == 3
    texts = ["", "", ""]
    for chunk in ask(client, seed=7, n=3, stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == alone


def test_requests_side_by_side_are_answered_as_one_by_one(server: Running, client: openai.OpenAI) -> None:
    options = [{"max_tokens": 40, "seed": seed, "temperature": 1 if seed % 2 else 0} for seed in range(8)]
    alone = [ask(client, **each).choices[0].message.content for each in options]

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as several:
            answers = await asyncio.gather(*(ask(several, **each) for each in options))  # type: ignore[arg-type]
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(together()) == alone


def test_a_stop_string_ends_the_answer(client: openai.OpenAI) -> None:
    text = ask(client).choices[0].message.content
    stop = text.split()[6]
    answer = ask(client, stop=["never to be said", stop]).choices[0]
    assert answer.message.content == text[: text.index(stop)]
    assert answer.finish_reason == "stop"
    assert streamed(client, stop=stop)[0] == text[: text.index(stop)]


def test_probabilities(client: openai.OpenAI) -> None:
    choice = ask(client, logprobs=True, top_logprobs=3, max_tokens=10).choices[0]
    tokens = choice.logprobs.content
    assert len(tokens) == 10
    assert b"".join(bytes(token.bytes) for token in tokens).decode().strip() == choice.message.content.strip()
    for token in tokens:
        assert token.top_logprobs[0].token == token.token  # greedy
        assert len(token.top_logprobs) == 3
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) < 1.0001
    chunks = [choice for chunk in ask(client, logprobs=True, top_logprobs=3, max_tokens=10, stream=True) for choice in chunk.choices]
    assert [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content] == tokens


def test_a_bias_forbids_and_forces(server: Running, client: openai.OpenAI) -> None:
    assert ask(client, max_tokens=1).choices[0].message.content == ","
    comma = server.models["demo"].tokenizer.token_id(",")
    assert "," not in ask(client, logit_bias={str(comma): -100}).choices[0].message.content
    assert len(set(ask(client, logit_bias={"400": 100}, max_tokens=5).choices[0].message.content.split())) == 1


@pytest.mark.parametrize(
    ("form", "valid"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": ANIMALS}}},
            r'\{\s*"animal"\s*:\s*"(cat|dog)"\s*\}',
        ),
        ({"extra_body": {"regex": "(yes|no), (cat|dog)"}}, "(yes|no), (cat|dog)"),
        ({"extra_body": {"grammar": 'start: "one" | "two"'}}, "one|two"),
        ({"response_format": {"type": "text"}}, "[^{]*"),
    ],
)
def test_an_answer_keeps_its_form(client: openai.OpenAI, form: dict[str, Any], valid: str) -> None:
    choice = ask(client, temperature=1, seed=1, **form).choices[0]
    assert re.fullmatch(valid, choice.message.content, re.DOTALL)
    assert streamed(client, temperature=1, seed=1, **form)[0] == choice.message.content


def test_any_object(client: openai.OpenAI) -> None:
    choice = ask(client, response_format={"type": "json_object"}, max_tokens=400).choices[0]
    assert choice.message.content.startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


NAMED = {"type": "function", "function": {"name": "feed"}}


@pytest.mark.parametrize(("choice", "names"), [("required", {"find", "feed"}), (NAMED, {"feed"})])
def test_a_call_that_is_asked_for_is_made(client: openai.OpenAI, choice: Any, names: set[str]) -> None:
    options = {"tools": TOOLS, "tool_choice": choice, "temperature": 1, "seed": 3, "max_tokens": 300}
    answer = ask(client, **options).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    (call,) = answer.message.tool_calls
    assert call.function.name in names
    assert json.loads(call.function.arguments)["animal"] in ("cat", "dog")
    text, calls, last = streamed(client, **options)
    assert (text, last.finish_reason) == ("", "tool_calls")
    assert [(each.index, each.function.name, each.function.arguments) for each in calls] == [
        (0, call.function.name, call.function.arguments)
    ]


def test_a_call_that_the_model_makes_is_found(client: openai.OpenAI) -> None:
    """What a model tuned for it writes, put into this one's mouth."""
    said = 'So: <tool_call>{"name": "feed", "arguments": {"animal": "cat"}}</tool_call>'
    form = {"tools": TOOLS, "extra_body": {"regex": re.escape(said)}, "max_tokens": 200}
    answer = ask(client, **form).choices[0]
    assert (answer.finish_reason, answer.message.content) == ("tool_calls", "So: ")
    assert answer.message.tool_calls[0].function.arguments == '{"animal": "cat"}'
    text, calls, last = streamed(client, **form)
    assert (text, len(calls), last.finish_reason) == ("So: ", 1, "tool_calls")
    twice = form | {"extra_body": {"regex": re.escape(said + said[4:])}}
    assert len(ask(client, **twice).choices[0].message.tool_calls) == 2
    (alone,) = ask(client, **twice, parallel_tool_calls=False).choices[0].message.tool_calls
    assert alone.function == answer.message.tool_calls[0].function
    unoffered = ask(client, **form, tool_choice="none").choices[0]
    assert (unoffered.finish_reason, unoffered.message.content, unoffered.message.tool_calls) == ("stop", said, None)


def test_calls_and_their_results_are_messages(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"animal": "cat"}'}}
    talk = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "Where?", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Here."},
    ]
    assert ask(client, messages=talk, tools=TOOLS).choices[0].message.content


def test_an_answer_is_sent_back_as_it_came(client: openai.OpenAI) -> None:
    for fields in ({}, {"tools": TOOLS, "tool_choice": NAMED, "max_tokens": 300}):
        said = ask(client, **fields).choices[0].message
        talk = [*MESSAGES, said.model_dump(), {"role": "user", "content": "And then?"}]
        assert ask(client, messages=talk).choices[0].message.content


def test_what_means_nothing_here_is_ignored(client: openai.OpenAI) -> None:
    expected = ask(client).choices[0].message.content
    ignored = {"user": "u", "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": True}
    assert ask(client, **ignored).choices[0].message.content == expected


PICTURE = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
            "messages[0].content",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [*MESSAGES, {"role": "system", "content": None}]}, "messages[2]"),
        ({"messages": [{"role": "tool", "content": "Here."}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": "", "audio": {"id": "a"}}]}, "messages[0].audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"functions": []}, "functions"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"temprature": 1}, "temprature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 10**30}, "n"),
        ({"n": 17}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": -3}, "max_completion_tokens"),
        ({"seed": 2**63 + 1}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "a" * 501}, "stop"),
        ({"logit_bias": {"cat": 1}}, "logit_bias"),
        ({"logit_bias": {"1024": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "response_format"),
        ({"grammar": "start: 1", "regex": "a"}, "grammar"),
        ({"tools": TOOLS, "tool_choice": "required", "regex": "a"}, "tool_choice"),
    ],
)
def test_what_cannot_be_is_refused_by_name(http: httpx.Client, fields: dict[str, Any], param: str) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Once"}], "max_tokens": 2, **fields}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert str(error["param"]).startswith(param)


@pytest.mark.parametrize(
    "fields",
    [
        {"regex": "(unclosed"},
        {"grammar": "no grammar"},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nothing"}}}},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_form_that_cannot_be_kept_is_refused(http: httpx.Client, fields: dict[str, Any], stream: bool) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Once"}], "stream": stream, **fields}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    assert "grammar" in answer.json()["error"]["message"]


def test_a_model_without_a_template_does_not_chat(start: Any, demo: Any) -> None:
    from dataclasses import replace

    client = start(replace(demo, chat_template=None)).client()
    with pytest.raises(openai.BadRequestError, match="--chat-template plain") as found:
        ask(client)
    assert found.value.code == "no_chat_template"
    assert client.completions.create(model="demo", prompt="Once").choices[0].text
