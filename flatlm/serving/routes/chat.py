"""/v1/chat/completions."""

import json
import secrets
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from flatlm.generative.generate import Piece
from flatlm.generative.generation_config import Grammar
from flatlm.serving.answers import sse
from flatlm.serving.answers.choices import FINISH, Choices, now
from flatlm.serving.answers.logprobs import chat_logprobs
from flatlm.serving.answers.respond import respond
from flatlm.serving.answers.tools import ToolCallParser, call_grammar, is_required, offered
from flatlm.serving.answers.writing import choices, generation_config, require_stream_options_fit
from flatlm.serving.errors import BadRequest
from flatlm.serving.schemas.answers import EVENTS, WRITES
from flatlm.serving.schemas.chat import ChatCompletion, ChatRequest, JsonObjectFormat, JsonSchemaFormat, Message
from flatlm.serving.text_model import TextModel

if TYPE_CHECKING:
    from flatlm.serving.app import Server


def router(server: "Server") -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["writing"])

    @routes.post("/chat/completions", response_model=ChatCompletion, responses=EVENTS | WRITES)
    async def create_chat_completion(request: Request, body: ChatRequest) -> Response:
        """The next turn of a conversation; with stream = true, as server-sent events."""
        chat = await sse.unless_gone(request, begin(server, body))
        return await respond(request, chat, stream=body.stream)

    return routes


async def begin(server: "Server", body: ChatRequest) -> "Chat":
    """Sends a request to its model."""
    deadline = server.deadline()
    model = server.text_model(body.model)
    require_stream_options_fit(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise BadRequest("top_logprobs goes with logprobs = true only", param="top_logprobs")
    tools, grammar = offered(body), _format(body)
    if is_required(body):
        if grammar is not None or body.grammar or body.regex:
            raise BadRequest("tool_choice asks for a call, so response_format, grammar and regex cannot be kept", param="tool_choice")
        grammar = call_grammar(tools)
    elif grammar is not None and (body.grammar or body.regex):
        raise BadRequest("give one of response_format, grammar and regex, not several", param="response_format")
    ids = await read(model, body)
    longest = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    config = generation_config(body, server.settings, model, max_new_tokens=longest, logprobs=logprobs, grammar=grammar)
    n = choices(body, server.settings, model)
    chat = Chat(body, Choices(model, [ids], config, n=n, deadline=deadline), [ToolCallParser.of(body) for _ in range(n)])
    server.answers[chat.id] = chat.choices
    return chat


async def read(model: TextModel, body: ChatRequest) -> list[int]:
    """The ids of a conversation, as the model reads it. BadRequest where there is no way to say it."""
    tools = [tool.model_dump(exclude_none=True) for tool in offered(body)]
    return await model.chat_tokens([_plain(message) for message in body.messages], tools or None)


class Chat:
    """An answer on its way, in OpenAI's form."""

    def __init__(self, body: ChatRequest, choices: Choices, parsers: list[ToolCallParser]) -> None:
        self.choices = choices
        self._body, self._parsers = body, parsers
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": now(), "model": body.model, "system_fingerprint": "flatlm"}

    @property
    def id(self) -> str:
        return str(self._head["id"])

    async def parts(self) -> AsyncIterator[tuple[int, str, list[dict[str, Any]], list[Piece]]]:
        """What is certain, as it comes: more of a text, new calls, and the pieces they come from, after the text's place."""
        async for place, pieces in self.choices.pieces():
            parser = self._parsers[place]
            text, calls = parser.push("".join(piece.text for piece in pieces))
            if pieces[-1].finish_reason is not None:
                rest, last = parser.finish()
                text, calls = text + rest, calls + last
            yield place, text, calls, pieces

    async def whole(self) -> dict[str, Any]:
        """At once."""
        texts = ["" for _ in self._parsers]
        pieces: list[list[Piece]] = [[] for _ in self._parsers]
        async for place, text, _, new in self.parts():
            texts[place] += text
            pieces[place] += new
        found = []
        for place, parser in enumerate(self._parsers):
            text = texts[place]
            message: dict[str, Any] = {"role": "assistant", "content": None if parser.calls and not text.strip() else text, "refusal": None}
            if parser.calls:
                message["tool_calls"] = parser.calls
            logprobs = chat_logprobs(pieces[place]) if self._body.logprobs else None
            reason = "tool_calls" if parser.calls else FINISH[pieces[place][-1].finish_reason or ""]
            found.append({"index": place, "message": message, "logprobs": logprobs, "finish_reason": reason})
        return {**self._head, "object": "chat.completion", "choices": found, "usage": self.choices.usage()}

    async def events(self) -> AsyncIterator[bytes]:
        """As it comes."""
        begun: set[int] = set()
        try:
            async for place, text, calls, pieces in self.parts():
                parser, reason = self._parsers[place], pieces[-1].finish_reason
                delta: dict[str, Any] = {} if place in begun else {"role": "assistant", "content": "", "refusal": None}
                begun.add(place)
                if text:
                    delta["content"] = text
                if calls:
                    first = len(parser.calls) - len(calls)
                    delta["tool_calls"] = [{"index": first + i, **call} for i, call in enumerate(calls)]
                logprobs = chat_logprobs(pieces) if self._body.logprobs else None
                if delta or logprobs:
                    yield self._chunk(place, delta, logprobs=logprobs)
                if reason is not None:
                    yield self._chunk(place, {}, reason="tool_calls" if parser.calls else FINISH[reason])
            if self._body.wants_usage:
                yield sse.event({**self._head, "object": _CHUNK, "choices": [], "usage": self.choices.usage()})
            yield sse.DONE
        finally:
            self.choices.close()

    def _chunk(self, place: int, delta: dict[str, Any], *, logprobs: dict[str, Any] | None = None, reason: str | None = None) -> bytes:
        choice = {"index": place, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._head, "object": _CHUNK, "choices": [choice]}
        return sse.event(chunk | {"usage": None} if self._body.wants_usage else chunk)


_CHUNK = "chat.completion.chunk"


def _format(body: ChatRequest) -> Grammar | None:
    match body.response_format:
        case JsonObjectFormat():
            return Grammar("json_object", "")
        case JsonSchemaFormat(json_schema=wanted):
            return Grammar("json_schema", json.dumps(wanted.schema_))
    return None


def _plain(message: Message) -> dict[str, Any]:
    """As chat templates take it: text in one piece, a call's arguments as an object, and the roles that they know."""
    plain: dict[str, Any] = message.model_dump(exclude_none=True, exclude={"refusal"})
    if isinstance(message.content, list):
        plain["content"] = "".join(part.text for part in message.content)
    plain.setdefault("content", "")
    if message.role == "developer":
        plain["role"] = "system"
    for call in plain.get("tool_calls", ()):
        try:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        except (ValueError, RecursionError):
            continue
    return plain
