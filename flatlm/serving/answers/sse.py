"""Server-sent events, and clients that go away."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from flatlm.serving.errors import ApiError

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
_LOG = logging.getLogger(__name__)


class ClientGone(Exception):  # noqa: N818 - nobody did wrong
    """Nobody waits for this answer any more."""


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event. `name`: for clients that tell events by it."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; it is cancelled, and ClientGone raised, where the client leaves meanwhile. The body must have been read."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        await _cancel(task, gone)


async def stream(request: Request, events: AsyncIterator[bytes], *, headers: Mapping[str, str] | None = None) -> Response:
    """Events as they come. What goes wrong before the first is raised, so that it still has a status of its own."""
    first = await unless_gone(request, _next(events))
    return EventStream(first, events, headers)


async def _next(events: AsyncIterator[bytes]) -> bytes:
    return await anext(events)


class EventStream(Response):
    """Stops `events` when they end, fail, or nobody listens any more."""

    def __init__(self, first: bytes, events: AsyncIterator[bytes], headers: Mapping[str, str] | None = None) -> None:
        self.status_code = 200
        self.background = None
        self._first, self._events = first, events
        self.init_headers({"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(sending, gone)
            with suppress(AttributeError):
                await self._events.aclose()  # type: ignore[attr-defined]

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        try:
            async for data in self._events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except ApiError as error:
            await send({"type": "http.response.body", "body": event(error.to_dict()), "more_body": True})
        except OSError:
            return
        except Exception as error:
            _LOG.exception("a stream failed")
            fault = ApiError(500, f"a fault in FlatLM: {type(error).__name__}", code="fault")
            await send({"type": "http.response.body", "body": event(fault.to_dict()), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    """Returns when the client leaves."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
