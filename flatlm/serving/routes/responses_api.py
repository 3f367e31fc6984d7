"""/v1/responses: OpenAI's Responses API, without state."""

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import Response

from flatlm.serving.answers import sse
from flatlm.serving.answers.respond import respond
from flatlm.serving.answers.response_events import ResponseTeller
from flatlm.serving.answers.response_request import chat_request
from flatlm.serving.answers.typed_events import Told
from flatlm.serving.routes import chat
from flatlm.serving.schemas.answers import EVENTS, WRITES
from flatlm.serving.schemas.responses import ResponseObject, ResponsesRequest

if TYPE_CHECKING:
    from flatlm.serving.app import Server


def router(server: "Server") -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["writing"])

    @routes.post("/responses", response_model=ResponseObject, responses=EVENTS | WRITES)
    async def create_response(request: Request, body: ResponsesRequest) -> Response:
        """The next turn of a conversation; with stream = true, as typed events. Nothing is kept for a later request."""
        written = await sse.unless_gone(request, chat.begin(server, chat_request(body)))
        teller = ResponseTeller(body)
        server.answers[teller.id] = written.choices
        return await respond(request, Told(written, teller), stream=body.stream)

    return routes
