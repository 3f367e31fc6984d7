"""/v1/messages and /v1/messages/count_tokens: Anthropic's Messages API."""

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from flatlm.serving.answers import sse
from flatlm.serving.answers.anthropic_events import MessageTeller
from flatlm.serving.answers.anthropic_request import chat_request
from flatlm.serving.answers.respond import respond
from flatlm.serving.answers.typed_events import Told
from flatlm.serving.routes import chat
from flatlm.serving.schemas.answers import EVENTS, WRITES
from flatlm.serving.schemas.anthropic import CountRequest, MessageErrorObject, MessageObject, MessagesRequest, TokenCount

if TYPE_CHECKING:
    from flatlm.serving.app import Server

REFUSALS: dict[int | str, dict[str, Any]] = {status: {**told, "model": MessageErrorObject} for status, told in WRITES.items()}


def router(server: "Server") -> APIRouter:
    routes = APIRouter(prefix="/v1/messages", tags=["writing"])

    @routes.post("", response_model=MessageObject, responses=EVENTS | REFUSALS)
    async def create_message(request: Request, body: MessagesRequest) -> Response:
        """The next turn of a conversation; with stream = true, as Anthropic's events."""
        written = await sse.unless_gone(request, chat.begin(server, chat_request(body)))
        teller = MessageTeller(body, prompt_tokens=written.choices.prompt_tokens)
        server.answers[teller.id] = written.choices
        return await respond(request, Told(written, teller), stream=body.stream)

    @routes.post("/count_tokens", responses=REFUSALS)
    async def count_tokens(body: CountRequest) -> TokenCount:
        """How many tokens a conversation has, as the model reads it."""
        return TokenCount(input_tokens=len(await chat.read(server.text_model(body.model), chat_request(body))))

    return routes
