"""/v1/messages, asked by the anthropic package."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.serving.conftest import Running

TOOL: Any = {
    "name": "weather",
    "description": "of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Paris"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
ASKED: Any = {"model": "demo", "max_tokens": 30, "messages": [{"role": "user", "content": "Once upon a time"}]}


@pytest.fixture(scope="module")
def claude(server: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60) as found:
        yield found


def test_an_answer_is_that_of_chat_completions(claude: anthropic.Anthropic, client: openai.OpenAI) -> None:
    chat = client.chat.completions.create(**ASKED, temperature=0)
    answer = claude.messages.create(**ASKED, temperature=0)
    assert answer.content[0].text == chat.choices[0].message.content
    assert (answer.stop_reason, answer.stop_sequence, answer.role, answer.model) == ("max_tokens", None, "assistant", "demo")
    read = answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
    assert (read, answer.usage.output_tokens) == (chat.usage.prompt_tokens, 30)


def test_a_system_prompt_and_blocks(claude: anthropic.Anthropic, client: openai.OpenAI) -> None:
    messages: Any = [{"role": "system", "content": "Once "}, {"role": "user", "content": "upon a time"}]
    chat = client.chat.completions.create(model="demo", messages=messages, max_tokens=20, temperature=0)
    blocks: Any = [{"type": "text", "text": "upon a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": " time"}]
    answer = claude.messages.create(
        model="demo",
        max_tokens=20,
        temperature=0,
        system="Once ",
        messages=[{"role": "user", "content": blocks}],
        metadata={"user_id": "1"},
    )
    assert answer.content[0].text == chat.choices[0].message.content


def test_a_stream_tells_the_same_answer(claude: anthropic.Anthropic) -> None:
    whole = claude.messages.create(**ASKED, temperature=0)
    with claude.messages.stream(**ASKED, temperature=0) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(texts) > 1
    assert "".join(texts) == final.content[0].text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 30)


def test_a_stop_sequence_is_named(claude: anthropic.Anthropic) -> None:
    whole = claude.messages.create(**ASKED, temperature=0).content[0].text
    word = whole.split()[5]
    answer = claude.messages.create(**ASKED, temperature=0, stop_sequences=["never there", word])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", word)
    assert answer.content[0].text == whole[: whole.index(word)]


def test_a_call_that_must_be(claude: anthropic.Anthropic) -> None:
    asked = ASKED | {"tools": [TOOL], "tool_choice": {"type": "any"}, "max_tokens": 200, "temperature": 0}
    answer = claude.messages.create(**asked)
    (block,) = answer.content
    assert (answer.stop_reason, block.type, block.name) == ("tool_use", "tool_use", "weather")
    assert block.input["city"] in ("Rome", "Paris")
    with claude.messages.stream(**asked) as stream:
        assert stream.get_final_message().content[0].input["city"] in ("Rome", "Paris")
    result: Any = {"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}
    again: Any = [*ASKED["messages"], {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    assert claude.messages.create(**asked | {"messages": again, "tool_choice": {"type": "auto"}}).content


def test_a_schema_is_kept(claude: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"name": {"enum": ["Lily", "Tom"]}}, "required": ["name"], "additionalProperties": False}
    asked = ASKED | {"max_tokens": 200, "temperature": 0}
    answer = claude.messages.create(**asked, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert json.loads(answer.content[0].text)["name"] in ("Lily", "Tom")


def test_tokens_are_counted_as_they_are_read(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(**ASKED, system="Be kind. ")
    counted = claude.messages.count_tokens(model="demo", messages=ASKED["messages"], system="Be kind. ")
    assert counted.input_tokens == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages[0].content[0]: blocks of the type 'image'",
        ),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "end with a user's"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.budget_tokens"),
        ({"mcp_servers": []}, "unknown field mcp_servers"),
        ({"tool_choice": {"type": "tool", "name": "clock"}, "tools": [TOOL]}, "'clock', which is not among the tools"),
    ],
)
def test_what_is_refused_is_named_in_anthropics_form(http: httpx.Client, fields: dict[str, Any], message: str) -> None:
    answer = http.post("/v1/messages", json={**ASKED, **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert message in error["error"]["message"]


def test_every_refusal_has_that_form(claude: anthropic.Anthropic, http: httpx.Client) -> None:
    with pytest.raises(anthropic.NotFoundError, match="'x' is not served here"):
        claude.messages.create(**ASKED | {"model": "x"})
    for answer, status in (
        (http.post("/v1/messages", content=b"{"), 400),
        (http.get("/v1/messages"), 405),
        (http.post("/v1/messages/batches", json={}), 404),
    ):
        assert answer.status_code == status
        assert answer.json()["type"] == "error", answer.text


def test_a_key_comes_in_either_header(start: Any) -> None:
    server: Running = start(api_keys=("secret",))
    options: Any = {"base_url": server.url, "max_retries": 0}
    assert anthropic.Anthropic(api_key="secret", **options).messages.create(**ASKED).content
    assert anthropic.Anthropic(auth_token="secret", api_key=None, **options).messages.create(**ASKED).content
    with pytest.raises(anthropic.AuthenticationError, match="a key is needed") as caught:
        anthropic.Anthropic(api_key="wrong", **options).messages.create(**ASKED)
    assert (caught.value.body["type"], caught.value.body["error"]["type"]) == ("error", "authentication_error")
