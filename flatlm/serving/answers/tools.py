"""Calls of tools: what an answer must look like to be one, and how it is found in a text."""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from flatlm.generative.generation_config import Grammar
from flatlm.serving.errors import BadRequest
from flatlm.serving.schemas.chat import ChatRequest, NamedToolChoice, Tool

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_DEFINITIONS = "$defs"


def offered(request: ChatRequest) -> list[Tool]:
    """The tools that the model may call. BadRequest for a choice among tools that are not there."""
    tools, choice = request.tools or [], request.tool_choice
    if choice not in (None, "none", "auto") and not tools:
        raise BadRequest("tool_choice asks for a call of a tool, and there are no tools", param="tool_choice")
    if choice == "none":
        return []
    if isinstance(choice, NamedToolChoice):
        name = choice.function.name
        tools = [tool for tool in tools if tool.function.name == name]
        if not tools:
            raise BadRequest(f"tool_choice names {name[:100]!r}, which is not among the tools", param="tool_choice")
    return tools


def is_required(request: ChatRequest) -> bool:
    """Must the answer be a call?"""
    return request.tool_choice == "required" or isinstance(request.tool_choice, NamedToolChoice)


def call_grammar(tools: Sequence[Tool]) -> Grammar:
    """A call of one of the tools, and nothing else: {"name": ..., "arguments": {...}}."""
    calls, definitions = [], dict[str, Any]()
    for place, tool in enumerate(tools):
        arguments, own = _nested(tool.function.parameters or {"type": "object"}, place)
        definitions |= own
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.function.name}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return Grammar("json_schema", json.dumps(schema | ({_DEFINITIONS: definitions} if definitions else {})))


def _nested(schema: Mapping[str, Any], place: int) -> tuple[Any, dict[str, Any]]:
    """A tool's schema as a part of a larger one: what it defines goes to the larger one's root, under names of its own."""
    if not any(f'"{key}"' in json.dumps(schema) for key in ("$ref", _DEFINITIONS, "definitions")):
        return schema, {}
    root = f"tool{place}"
    own = {
        f"{root}_{name}": _refs_moved(each, root)
        for key in (_DEFINITIONS, "definitions")
        if isinstance(named := schema.get(key), dict)
        for name, each in named.items()
    }
    moved = {key: _refs_moved(value, root) for key, value in schema.items() if key not in (_DEFINITIONS, "definitions")}
    if f'"#/{_DEFINITIONS}/{root}"' not in json.dumps([moved, own]):
        return moved, own
    return {"$ref": f"#/{_DEFINITIONS}/{root}"}, own | {root: moved}  # it refers to itself


def _refs_moved(value: Any, root: str) -> Any:
    """The same, but for where its references point."""
    if isinstance(value, list):
        return [_refs_moved(each, root) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: _moved(each, root) if key == "$ref" else _refs_moved(each, root) for key, each in value.items()}


def _moved(reference: Any, root: str) -> Any:
    if reference == "#":
        return f"#/{_DEFINITIONS}/{root}"
    if not isinstance(reference, str):
        return _refs_moved(reference, root)  # a property of that name
    return re.sub(r"^#/(\$defs|definitions)/", f"#/{_DEFINITIONS}/{root}_", reference)


def parse_call(text: str, names: Sequence[str]) -> dict[str, Any] | None:
    """A call in OpenAI's form, from {"name": ..., "arguments": {...}}; None where the text is none of a tool that is there."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or value.get("name") not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments)
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": {"name": value["name"], "arguments": arguments}}


class ToolCallParser:
    """Splits an answer, as it comes, into its text and its calls."""

    def __init__(self, tools: Sequence[Tool], *, required: bool, first_alone: bool = False) -> None:
        """`required`: the whole answer is one call, without marks around it. `first_alone`: further calls are left out."""
        self.calls: list[dict[str, Any]] = []
        self._names = [tool.function.name for tool in tools]
        self._required, self._first_alone = required, first_alone
        self._kept = ""
        self._inside = False
        self._blank: str | None = None  # since a call: line breaks, which are told only where text follows

    @classmethod
    def of(cls, request: ChatRequest) -> "ToolCallParser":
        """Of an answer to it."""
        return cls(offered(request), required=is_required(request), first_alone=request.parallel_tool_calls is False)

    def push(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """What is certain now: more of the text, and new calls."""
        if not self._names:
            return text, []
        self._kept += text
        if self._required:
            return "", []
        said, calls = "", []
        while True:
            mark = CLOSE if self._inside else OPEN
            before, found, after = self._kept.partition(mark)
            if not found:
                break
            self._kept = after
            if not self._inside:
                said += self._said(before)
            elif (call := parse_call(before, self._names)) is not None:
                calls.append(call)
                self._blank = ""
            else:
                said += self._said(f"{OPEN}{before}{CLOSE}")
            self._inside = not self._inside
        if not self._inside:
            safe = len(self._kept) - _begun(self._kept, OPEN)
            said, self._kept = said + self._said(self._kept[:safe]), self._kept[safe:]
        return said, self._kept_of(calls)

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """What was kept back: a call without its end is one where it is whole."""
        kept, self._kept = self._kept, ""
        if not (self._inside or self._required):
            return self._said(kept), []
        call = parse_call(kept, self._names)
        if call is None:
            return self._said((OPEN if self._inside else "") + kept), []
        return "", self._kept_of([call])

    def _kept_of(self, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those that are told, which `calls` has from now on."""
        if self._first_alone:
            calls = [] if self.calls else calls[:1]
        self.calls += calls
        return calls

    def _said(self, text: str) -> str:
        """What can be told now of a text outside calls."""
        if self._blank is None:
            return text
        self._blank += text
        if not self._blank.strip():
            return ""
        text, self._blank = self._blank, None
        return text


def _begun(text: str, mark: str) -> int:
    """How many of the text's last characters may be the beginning of the mark."""
    return next((size for size in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:size])), 0)
