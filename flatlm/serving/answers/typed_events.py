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


class Told:
    """An answer on its way, in an API's own words."""

    def __init__(self, chat: Chat, teller: Teller) -> None:
        self.choices = chat.choices
        self._chat, self._teller = chat, teller

    async def whole(self) -> dict[str, Any]:
        """The answer, when it has ended. Raises ApiError."""
        async for _ in self._events():
            pass
        return self._teller.answer

    async def events(self) -> AsyncIterator[bytes]:
        """As it comes. ApiError is raised before the first event, and told after it."""
        begun = False
        try:
            async for event in self._events():
                begun = True
                yield sse.event(event, event["type"])
        except ApiError as error:
            if not begun:
                raise
            for event in self._teller.fail(error):
                yield sse.event(event, event["type"])
        finally:
            self.choices.close()

    async def _events(self) -> AsyncIterator[Event]:
        begun = False
        async for _, text, calls, pieces in self._chat.parts():
            if not begun:
                begun = True
                for event in self._teller.begin():
                    yield event
            for event in self._teller.push(text, calls):
                yield event
            last = pieces[-1]
            if last.finish_reason is not None:
                for event in self._teller.end(reason=last.finish_reason, stop=last.stop, usage=self.choices.usage()):
                    yield event
