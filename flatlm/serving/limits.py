"""Who may ask, how much may be sent, and how long that may take: before any of it is read as JSON."""

import asyncio
import hmac
import time
from collections.abc import Sequence
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flatlm.serving.errors import ApiError
from flatlm.serving.settings import ServerSettings

OPEN_PATHS = ("/health",)
"""Answered without a key."""


class ApiKeys:
    """401 where a request has none of the keys: `Authorization: Bearer KEY`, or `x-api-key: KEY`."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._keys or scope["path"] in OPEN_PATHS or self._known(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        message = "a key is needed: send it as `Authorization: Bearer KEY`; the one that came, if any, is not known here"
        error = ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        await error.response(scope["path"])(scope, receive, send)

    def _known(self, headers: Headers) -> bool:
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        # Against all of them, each in a time that does not tell how much of it was right.
        matches = [hmac.compare_digest(given.encode("latin-1", "replace"), key) for key in self._keys]
        return any(matches)


class HostNames:
    """400 for a request to this machine alone that calls it by another machine's name.

    So a page's script cannot ask by a name of its own that it lets point here.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._names = {"localhost", settings.host.lower(), *(name.lower() for name in settings.allowed_hosts)}
        self._local = settings.host == "localhost" or _is_loopback(settings.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._local or self._known(Headers(scope=scope).get("host")):
            await self._app(scope, receive, send)
            return
        message = "this server answers requests to this machine alone: call it 127.0.0.1 or localhost, or start it with --allow-host NAME"
        await ApiError(400, message, code="unknown_host").response()(scope, receive, send)

    def _known(self, host: str | None) -> bool:
        """Of the header's value, with or without a port."""
        if host is None:
            return True
        name = host.lower().rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host.lower()
        name = name.removeprefix("[").removesuffix("]")
        return name in self._names or _is_loopback(name)


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


class BodyLimit:
    """413 for a body that is too large, whether it says so or not; 408 for one that takes too long."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._most, self._seconds = settings.max_body_bytes, settings.body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        try:
            if declared.isdigit() and int(declared[:20]) > self._most:
                raise self._too_large()
            messages = await self._body(receive)
        except ApiError as error:
            error.headers["Connection"] = "close"
            await error.response(scope["path"])(scope, receive, send)
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)

    async def _body(self, receive: Receive) -> list[Message]:
        """The body, whole."""
        ends_at = time.monotonic() + self._seconds
        messages: list[Message] = []
        size = 0
        while True:
            try:
                async with asyncio.timeout(max(0.0, ends_at - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise ApiError(408, f"the request's body did not arrive in {self._seconds:g} seconds", code="body_timeout") from None
            messages.append(message)
            size += len(message.get("body", b""))
            if size > self._most:
                raise self._too_large()
            if message["type"] != "http.request" or not message.get("more_body", False):
                return messages

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the request's body is larger than {self._most} bytes, the most that is taken", code="body_too_large")
