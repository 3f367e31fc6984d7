"""Chat templates: Jinja text that came with a checkpoint, rendered in a sandbox that can reach neither files nor Python's insides.

The names that a template may use are those that transformers gives (its documentation, "Chat templates"): messages,
add_generation_prompt, tools, documents, the special tokens, raise_exception(), strftime_now(), namespace() and dict(), the filter
tojson, loop controls, and the block {% generation %}, which here only yields what is in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from flatlm.errors import TokenizerError

if TYPE_CHECKING:
    from jinja2 import Template


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    special_tokens: Mapping[str, str],
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The text of a conversation. Each message is a mapping with "role" and "content" (what else depends on the template).

    `special_tokens` are variables of the template, such as {"bos_token": "<s>"}. `tools`: what the model may call, each a mapping such as
    {"type": "function", "function": {"name": ..., "description": ..., "parameters": JSON schema}}; a template that knows none leaves them
    out. Raises TokenizerError where the template is broken or refuses the messages, or messages or tools are not JSON.
    """
    if not messages:
        raise TokenizerError("the conversation is empty; give at least one message")
    try:
        # Only plain data reaches the template: objects would bring methods along. A None is as good as an absent key.
        plain = json.loads(json.dumps(list(messages)))
        plain = [{key: value for key, value in message.items() if value is not None} for message in plain]
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise TokenizerError(f"the messages must be mappings of JSON values, with 'role' and 'content': {error}") from error
    plain_tools = None if tools is None else _plain_tools(tools)
    require_template(template)
    try:
        return _render(
            _compile(template),
            {"messages": plain, "tools": plain_tools, "documents": None, "add_generation_prompt": add_generation_prompt, **special_tokens},
        )
    except Exception as error:  # a template may fail in any way that Python can
        raise TokenizerError(f"the chat template refuses these messages: {type(error).__name__}: {error}") from error


def _render(template: Template, values: Mapping[str, Any]) -> str:
    from flatlm.utilities.tokenizing import template_steps

    template_steps.begin()
    parts: list[str] = []
    length = 0
    for part in template.generate(values):
        template_steps.require_length(length := length + len(part))
        parts.append(part)
    return "".join(parts)


def require_template(template: str) -> None:
    """Raises TokenizerError where this is no Jinja template. What it makes of messages shows only when it is rendered."""
    import jinja2

    try:
        _compile(template)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(f"the chat template is broken at its line {error.lineno}: {error.message}") from error
    except (RecursionError, MemoryError) as error:  # thousands of brackets
        raise TokenizerError(f"the chat template is broken: {type(error).__name__}") from error


def _plain_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Here a None stays, as transformers lets it: a JSON schema may have one as a default."""
    try:
        if isinstance(tools, str | Mapping) or not all(isinstance(tool, Mapping) for tool in tools):
            raise TypeError("each is a mapping, in a list")
        plain: list[dict[str, Any]] = json.loads(json.dumps(list(tools)))
    except (TypeError, ValueError, RecursionError) as error:
        raise TokenizerError(f"the tools must be mappings of JSON values, such as a function's name and parameters: {error}") from error
    return plain


@lru_cache(maxsize=8)
def _compile(template: str) -> Template:
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.utils import Namespace

    from flatlm.utilities.tokenizing.template_steps import BoundedEnvironment, Steps

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    class PlainNamespace(Namespace):
        """jinja2's own, but no attribute of Python's own can be set in it, at its making or later."""

        def __init__(self, /, *args: Any, **attributes: Any) -> None:
            values = dict(*args, **attributes)
            for name in values:
                _plain_name(name)
            super().__init__(values)

        def __setitem__(self, name: str, value: Any) -> None:
            _plain_name(name)
            super().__setitem__(name, value)

    def _plain_name(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace may not hold the name {name!r}")

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    def make_dict(*args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, Steps, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now, namespace=PlainNamespace, dict=make_dict)
    return environment.from_string(template)
