"""Connections that are held open, that send no HTTP, or that are too many: uvicorn's protocol, with an end to waiting."""

import asyncio
import socket
from contextlib import suppress
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from flatlm.serving.errors import ApiError
from flatlm.serving.settings import ServerSettings

UNREAD_S = 60
"""A client that takes nothing of its answer for so long, or is no longer there, is given up."""
_REFUSABLE = (h11.IDLE, h11.SEND_RESPONSE)
"""Nothing of an answer was sent yet."""


class PatientProtocol(H11Protocol):
    """Says why, in the form of all refusals, before it closes a connection."""

    settings = ServerSettings()
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        with suppress(OSError, AttributeError):  # where a system has no such option
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_S * 1000)
        if (extra := len(self.connections) - self.settings.max_connections) > 0:
            self.app = self._crowded  # who asks is told; of many more there is none to tell
            if extra > self.settings.max_connections:
                transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._rest()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls for bytes that it cannot read."""
        self._refuse(ApiError(400, "what was sent is not HTTP/1.1 that can be read", code="invalid_http"))

    async def _crowded(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"{self.settings.max_connections} connections are open already, as many as may be; try again later"
        error = ApiError(503, message, code="too_many_connections", headers={"Retry-After": "1", "Connection": "close"})
        await error.response(scope["path"])(scope, receive, send)

    def _watch(self) -> None:
        """Counts from the first byte that a request's headers are begun with, however slowly the others come."""
        if self.conn.their_state is not h11.IDLE:
            self._rest()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(self.settings.header_timeout_s, self._late)

    def _late(self) -> None:
        self._waiting = None
        if self.conn.trailing_data[0]:
            seconds = self.settings.header_timeout_s
            self._refuse(ApiError(408, f"the request's headers did not arrive in {seconds:g} seconds", code="header_timeout"))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        """Answers for the application, where it has not begun to, and closes."""
        if self.conn.our_state in _REFUSABLE and not self.transport.is_closing():
            answer = error.response()
            headers = [*answer.raw_headers, (b"connection", b"close")]
            for event in (h11.Response(status_code=error.status, headers=headers), h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _rest(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
