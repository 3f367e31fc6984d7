"""An answer that has begun, sent to whoever asked."""

from collections.abc import AsyncIterator
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from flatlm.serving.answers import sse
from flatlm.serving.answers.choices import Choices
from flatlm.serving.schemas.answers import json_response


class Begun(Protocol):
    """An answer on its way, in the form of an API."""

    @property
    def choices(self) -> Choices: ...
    async def whole(self) -> dict[str, Any]:
        """When it has ended."""

    def events(self) -> AsyncIterator[bytes]:
        """As it comes. It closes the choices at its end."""


async def respond(request: Request, begun: Begun, *, stream: bool | None) -> Response:
    """At once, or as server-sent events. What fails before there is a response is raised, and nothing is written on."""
    try:
        if stream:
            return await sse.stream(request, begun.events())
        return json_response(await sse.unless_gone(request, begun.whole()))
    except BaseException:
        begun.choices.close()
        raise
