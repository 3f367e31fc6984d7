"""Parts of schemas: fields that are known but not heeded, refused by name; and alternatives that are told apart before they are read.

A plain union tries every alternative, and its errors are of all of them. Here a value's form or "type" decides, so that an error names
the place that is wrong. The tags are in parentheses, so that whoever names the place can leave them out.
"""

from dataclasses import dataclass
from typing import Any

from pydantic import Discriminator, GetCoreSchemaHandler, GetJsonSchemaHandler, Tag
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

NO_STATE = "this server keeps no state; send the whole conversation"

TEXT, LIST, OBJECT = Tag("(text)"), Tag("(list)"), Tag("(object)")


def _form(value: object) -> str:
    return "(text)" if isinstance(value, str) else "(list)"


def _form_of_choice(value: object) -> str:
    return "(text)" if isinstance(value, str) else "(object)"


TEXT_OR_LIST = Discriminator(_form)
TEXT_OR_OBJECT = Discriminator(_form_of_choice)


class _Checked:
    """Metadata of a field: looks at a value before it is read."""

    def check(self, value: Any) -> Any:
        raise NotImplementedError

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.check, handler(source))


@dataclass(frozen=True)
class Refused(_Checked):
    """Of a field that may only be absent, or null. `why`: what a message says after the field's name."""

    why: str

    def check(self, value: Any) -> Any:
        if value is not None:
            raise _refusal(self.why)
        return value

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {"description": f"Refused: {self.why}."}


@dataclass(frozen=True)
class Only(_Checked):
    """Of a field that may have one value alone, or be absent."""

    value: Any
    why: str

    def check(self, value: Any) -> Any:
        if value is not None and (type(value) is not type(self.value) or value != self.value):
            raise _refusal(self.why)
        return value

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"enum": [self.value, None], "description": f"Nothing else: {self.why}."}


@dataclass(frozen=True)
class Kinds(_Checked):
    """Of an object whose "type" says what it is: one of `names`; others are refused by name. `what`: the objects, in words.

    `default`: of objects that say none.
    """

    what: str
    names: tuple[str, ...]
    default: str | None = None

    def check(self, value: Any) -> Any:
        if isinstance(value, dict) and (given := self.default if value.get("type") is None else value["type"]) not in self.names:
            why = f"{self.what} of the type {str(given)[:50]!r} are not taken here, only {', '.join(self.names)}"
            raise PydanticCustomError("refused", "{why}", {"why": why})
        return value

    @property
    def discriminator(self) -> Discriminator:
        """For a union whose alternatives are tagged by `tag`."""

        def of(value: Any) -> str:
            given = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
            return f"({given or self.default or self.names[0]})"

        return Discriminator(of)


def tag(name: str) -> Tag:
    """Of an alternative whose objects are of the type `name`."""
    return Tag(f"({name})")


def _refusal(why: str) -> PydanticCustomError:
    return PydanticCustomError("refused", "not possible here: {why}", {"why": why})
