"""How answers and refusals look in the OpenAPI description."""

import json
from typing import Any

from starlette.responses import Response

from flatlm.serving.schemas.common import ErrorObject

_MEANINGS = {
    400: "The request cannot be answered: the message names the field.",
    401: "A key is needed.",
    404: "There is no such model.",
    408: "The request's body did not arrive in time.",
    413: "The request's body is too large.",
    429: "Too many requests wait already.",
    500: "A fault, or the model's process was lost.",
    503: "The model's process cannot be started.",
    504: "The request's time was over before its answer began.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """A route's `responses`."""
    return {status: {"model": ErrorObject, "description": _MEANINGS[status]} for status in statuses}


READS = refusals(401, 500)
WRITES = refusals(*_MEANINGS)
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            "text/event-stream": {
                "schema": {
                    "type": "object",
                    "description": "With stream = true: server-sent events, of this form each. `data` is JSON, or [DONE].",
                    "properties": {"data": {"type": "string"}, "event": {"type": "string"}},
                    "required": ["data"],
                }
            }
        }
    }
}


def json_response(value: Any) -> Response:
    return Response(json.dumps(value, separators=(",", ":")).encode(), media_type="application/json")
