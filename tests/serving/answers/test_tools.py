import json
from itertools import pairwise
from typing import Literal

import jsonschema
import openai
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatlm.generative.grammars import require_valid
from flatlm.serving.answers.tools import ToolCallParser, call_grammar, is_required, offered
from flatlm.serving.errors import BadRequest
from flatlm.serving.schemas.chat import ChatRequest, Tool

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    Tool.model_validate({"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}),
    Tool.model_validate({"type": "function", "function": {"name": "time"}}),
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


def parse(text: str, cuts: list[int] | None = None, *, required: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """The text and the calls of an answer that comes in pieces."""
    parser = ToolCallParser(TOOLS, required=required)
    places = [0, *sorted(place % (len(text) + 1) for place in cuts or []), len(text)]
    said, calls = "", []
    for begin, end in pairwise(places):
        more, new = parser.push(text[begin:end])
        said, calls = said + more, calls + new
    more, new = parser.finish()
    assert calls + new == parser.calls
    assert len({call["id"] for call in parser.calls}) == len(parser.calls)
    return said + more, [(call["function"]["name"], call["function"]["arguments"]) for call in parser.calls]


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("It is warm.", "It is warm.", []),
        (CALL, "", [("weather", '{"city": "K\\u00f6ln"}')]),
        (f"Let me see. {CALL}", "Let me see. ", [("weather", '{"city": "K\\u00f6ln"}')]),
        (f" {CALL} \n and {CALL} \n", "  \n and ", [("weather", '{"city": "K\\u00f6ln"}')] * 2),
        (f"{CALL}\n{CALL}\n", "", [("weather", '{"city": "K\\u00f6ln"}')] * 2),
        ('<tool_call>{"name": "time"}', "", [("time", "{}")]),
        ('<tool_call>{"name": "time", "parameters": {"a": 1}}</tool_call>', "", [("time", '{"a": 1}')]),
        ('<tool_call>{"name": "other", "arguments": {}}</tool_call>', '<tool_call>{"name": "other", "arguments": {}}</tool_call>', []),
        ("<tool_call>{never", "<tool_call>{never", []),
        ("1 < 2 <tool", "1 < 2 <tool", []),
    ],
)
@given(cuts=st.lists(st.integers(0, 200), max_size=8))
def test_calls_are_found_however_the_text_comes(text: str, said: str, calls: list[tuple[str, str]], cuts: list[int]) -> None:
    assert parse(text, cuts) == (said, calls)


def test_text_before_a_call_is_not_held_back() -> None:
    parser = ToolCallParser(TOOLS, required=False)
    assert parser.push("It is <b") == ("It is <b", [])
    assert parser.push("y now <tool") == ("y now ", [])
    assert parser.push("s") == ("<tools", [])


def test_without_tools_text_is_text() -> None:
    parser = ToolCallParser([], required=False)
    assert parser.push(CALL) == (CALL, [])


def test_an_answer_that_must_be_a_call_is_one_without_marks() -> None:
    assert parse('{"name": "time", "arguments": {}}', [3, 9], required=True) == ("", [("time", "{}")])
    assert parse('{"name": "ti', required=True) == ('{"name": "ti', [])


def request(**fields: object) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "a"}], **fields})


def test_which_tools_are_offered() -> None:
    tools = [tool.model_dump(exclude_none=True) for tool in TOOLS]
    named = {"type": "function", "function": {"name": "time"}}
    for choice, names, required in [
        (None, ["weather", "time"], False),
        ("auto", ["weather", "time"], False),
        ("none", [], False),
        ("required", ["weather", "time"], True),
        (named, ["time"], True),
    ]:
        body = request(tools=tools, tool_choice=choice)
        assert ([tool.function.name for tool in offered(body)], is_required(body)) == (names, required)
    for wrong in ({"tool_choice": "required"}, {"tools": tools[:1], "tool_choice": named}):
        with pytest.raises(BadRequest) as found:
            offered(request(**wrong))
        assert found.value.param == "tool_choice"


def test_a_calls_grammar_is_its_tools_schema() -> None:
    schema = json.loads(call_grammar(TOOLS).text)
    assert [each["properties"]["name"]["const"] for each in schema["anyOf"]] == ["weather", "time"]
    assert schema["anyOf"][0]["properties"]["arguments"] == SCHEMA
    assert json.loads(call_grammar(TOOLS[1:]).text)["properties"]["name"] == {"const": "time"}


class Place(pydantic.BaseModel):
    street: Literal["Main Street", "Long Lane"]
    inside: "Place | None"


class Visit(pydantic.BaseModel):
    """A tool whose arguments have parts of their own."""

    places: list[Place]


def test_what_a_tool_defines_is_found_from_the_call() -> None:
    """By llguidance, which knows references from the root alone, and by the book."""
    visit = openai.pydantic_function_tool(Visit)
    older = {
        "type": "object",
        "properties": {"a": {"$ref": "#/definitions/Place"}},
        "definitions": {"Place": {"const": 7}},
        "required": ["a"],
    }
    tree = {"type": "object", "properties": {"left": {"$ref": "#"}}, "additionalProperties": False}
    odd = {"type": "object", "properties": {"$ref": {"type": "integer"}}, "required": ["$ref"]}
    others = [
        {"type": "function", "function": {"name": f"other{place}", "parameters": each}} for place, each in enumerate((older, tree, odd))
    ]
    main = {"street": "Main Street", "inside": {"street": "Long Lane", "inside": None}}
    good = [
        ("Visit", {"places": [main, main]}),
        ("other0", {"a": 7}),
        ("other1", {"left": {"left": {}}}),
        ("other2", {"$ref": 3}),
    ]
    bad = [("Visit", {"places": [7]}), ("other0", {"a": main}), ("other1", {"left": {"right": {}}}), ("other2", {"$ref": "3"})]
    given = [Tool.model_validate(each) for each in (visit, *others)]
    for tools in (given, *([tool] for tool in given)):
        grammar = call_grammar(tools)
        require_valid(grammar)
        names = {tool.function.name for tool in tools}
        for calls, expected in ((good, True), (bad, False)):
            for name, arguments in calls:
                found = jsonschema.Draft202012Validator(json.loads(grammar.text)).is_valid({"name": name, "arguments": arguments})
                assert found == (expected and name in names), (name, arguments)
