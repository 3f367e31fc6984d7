"""Answers of the APIs whose events have types: an answer on its way, told in an API's own words."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from flatlm.serving.answers import sse
from flatlm.serving.errors import ApiError
from flatlm.serving.routes.chat import Chat

Event: TypeAlias = dict[str, Any]
"""With "type", which is its name on the wire too."""
Call: TypeAlias = Mapping[str, Any]
"""Of a tool, as chat completions have it."""


class Teller(Protocol):
    """What an API makes of an answer. `answer` is the answer so far, as it is sent without a stream."""

    answer: dict[str, Any]

    def begin(self) -> Iterator[Event]: ...
    def push(self, text: str, calls: Sequence[Call] = ()) -> Iterator[Event]: ...
    def end(self, *, reason: str, stop: str | None, usage: Mapping[str, Any]) -> Iterator[Event]:
        """`reason`: a `FinishReason` of `generate`. `stop`: the stop string that ended it. `usage`: as chat completions have it."""

    def fail(self, error: ApiError) -> Iterator[Event]: ...


async def whole(chat: Chat, teller: Teller) -> dict[str, Any]:
    """The answer, when it has ended. Raises ApiError."""
    async for _ in _told(chat, teller):
        pass
    return teller.answer


async def events(chat: Chat, teller: Teller) -> AsyncIterator[bytes]:
    """As it comes. ApiError is raised before the first event, and told after it."""
    begun = False
    try:
        async for event in _told(chat, teller):
            begun = True
            yield sse.event(event, event["type"])
    except ApiError as error:
        if not begun:
            raise
        for event in teller.fail(error):
            yield sse.event(event, event["type"])
    finally:
        chat.choices.close()


async def _told(chat: Chat, teller: Teller) -> AsyncIterator[Event]:
    begun = False
    async for _, text, calls, pieces in chat.parts():
        if not begun:
            begun = True
            for event in teller.begin():
                yield event
        for event in teller.push(text, calls):
            yield event
        last = pieces[-1]
        if last.finish_reason is not None:
            for event in teller.end(reason=last.finish_reason, stop=last.stop, usage=chat.choices.usage()):
                yield event
