# ruff: noqa: N818 - named after what happened
"""What a request is refused with: OpenAI's error object, {"error": {"message", "type", "param", "code"}}, or Anthropic's."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

INVALID = "invalid_request_error"
ANTHROPIC_PATH = "/v1/messages"
"""Whoever asks there, or below, reads Anthropic's form."""


class ApiError(Exception):
    """A request that has no answer, or none beyond what was sent."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`param`: the field of the request that it is about."""
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        return _TYPES.get(self.status, INVALID if self.status < 500 else "server_error")

    def to_dict(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def to_anthropic(self) -> dict[str, Any]:
        """The same, as Anthropic's clients read it."""
        kind = _ANTHROPIC_TYPES.get(self.status, INVALID if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    def response(self, path: str = "") -> Response:
        """`path`: where it was asked, which decides on the form."""
        error = self.to_anthropic() if path.startswith(ANTHROPIC_PATH) else self.to_dict()
        # ASCII alone: a message may repeat what was sent, which need not be text that UTF-8 can say.
        return Response(json.dumps(error).encode(), self.status, self.headers, "application/json")


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class BadRequest(ApiError):
    """400."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(400, message, param=param, code=code)


class QueueFull(ApiError):
    """429: as many requests wait as may."""

    def __init__(self, waiting: int) -> None:
        super().__init__(
            429, f"the server is busy: {waiting} requests wait already; try again later", code="queue_full", headers={"Retry-After": "1"}
        )


class Deadline(ApiError):
    """504: the request's time was over before its answer began."""

    def __init__(self, message: str = "the request's time was over before its answer began") -> None:
        super().__init__(504, message, code="timeout")


class EngineLost(ApiError):
    """500: the model's process ended."""

    def __init__(self, name: str, how: str) -> None:
        super().__init__(500, f"the process that runs {name} {how} while this was being answered; it is started again", code="engine_lost")


class EngineDown(ApiError):
    """503: the model's process cannot be started, or the server is ending."""

    def __init__(self, message: str) -> None:
        super().__init__(503, message, code="engine_down", headers={"Retry-After": "5"})
