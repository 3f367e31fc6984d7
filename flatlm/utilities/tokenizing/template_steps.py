"""What bounds a chat template's loops: it comes with a checkpoint, and its author may be nobody's friend.

jinja2's sandbox bounds one `range` and no more. Here each turn of a loop and each call of a macro is a step, and there are so many of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_STEPS = 1_000_000
"""Of one rendering: about a second. A conversation of a thousand turns takes some thousands."""
MOST_CHARACTERS = 1 << 26
"""Of the text, and of what +, * and % make; items, where that is a list."""
_MOST_BITS = 1 << 16

_WIDE = re.compile(r"%[^a-zA-Z%]*(\*|\d{5,})")

_steps: ContextVar[int] = ContextVar("_steps", default=0)


def begin() -> None:
    """A rendering begins, in this thread."""
    _steps.set(0)


def require_length(length: int) -> None:
    """Raises SecurityError."""
    if length > MOST_CHARACTERS:
        raise SecurityError(f"it makes more than {MOST_CHARACTERS:,} characters")


class Steps(Extension):
    """Counts. Raises SecurityError past MOST_STEPS."""

    def step(self) -> str:
        _steps.set(count := _steps.get() + 1)
        if count > MOST_STEPS:
            raise SecurityError(f"it takes more than {MOST_STEPS:,} turns of its loops")
        return ""

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.step()
            yield item

    def call(self, name: str, arguments: list[Any], line: int) -> nodes.Call:
        """The template's own call of a method here."""
        return nodes.Call(self.attr(name, lineno=line), arguments, [], None, None, lineno=line)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox whose templates end. It has the extension `Steps`."""

    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        steps = self.extensions[Steps.identifier]
        assert isinstance(steps, Steps)
        node: Any
        for node in list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
            if isinstance(node, nodes.For):
                node.iter = steps.call("counted", [node.iter], node.lineno)
            if not isinstance(node, nodes.For) or node.recursive:
                node.body.insert(0, nodes.ExprStmt(steps.call("step", [], node.lineno), lineno=node.lineno))
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Raises SecurityError before a product is made that is too large."""
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int):
                    require_length(len(many) * times)
        if operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise SecurityError("it formats with a width of more than 9,999 characters, or with one that it does not say")
        if operator == "**" and isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _MOST_BITS:
            raise SecurityError("a power is too large")
        made = super().call_binop(context, operator, left, right)
        if isinstance(made, str | list | tuple):
            require_length(len(made))
        return made
