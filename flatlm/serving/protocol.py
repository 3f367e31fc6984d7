"""Connections that are held open and not used: uvicorn's protocol, with an end to waiting."""

import asyncio
import socket
from contextlib import suppress
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

UNREAD_S = 60
"""A client that takes nothing of its answer for so long, or is no longer there, is given up."""


class PatientProtocol(H11Protocol):
    """Closes a connection whose next request's headers are not whole in time."""

    header_timeout_s = 10.0
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        with suppress(OSError, AttributeError):  # where a system has no such option
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_S * 1000)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._rest()

    def _watch(self) -> None:
        """Counts from the first byte that a request's headers are begun with, however slowly the others come."""
        if self.conn.their_state is not h11.IDLE:
            self._rest()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(self.header_timeout_s, self._late)

    def _late(self) -> None:
        self._waiting = None
        if not self.transport.is_closing():
            self.transport.close()

    def _rest(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
