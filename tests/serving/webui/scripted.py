"""A server whose answers are written beforehand: for what no small model can be made to say, or to do, such as stopping half-way."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import tokenizers
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from flatlm.serving.limits import ApiKeys
from flatlm.serving.routes import page
from flatlm.serving.text_model import ModelCard, TextModel
from flatlm.utilities.tokenizing.tokenizer import Tokenizer, TokenizerSettings

_TOKENIZER = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).to_str()


@dataclass
class Script:
    """What is answered next, and what was asked."""

    pieces: tuple[str, ...] = ("Hello", " there", ".")
    pause_s: float = 0.0
    finish: str = "stop"
    ending: Literal["whole", "early", "broken"] = "whole"
    """After the pieces: as it should be; no more events; a connection that breaks."""
    refusal: tuple[int, str] | None = None
    error: str | None = None
    """After the pieces."""
    prompt_tokens: int = 5
    asked: list[dict[str, Any]] = field(default_factory=list)
    left: list[bool] = field(default_factory=list)
    """Of each answer: did the client go away before its end?"""


@dataclass(frozen=True)
class ScriptedServer:
    url: str
    script: Script


@contextlib.contextmanager
def scripted(
    file: Path,
    *,
    context: int = 64,
    chat_template: str | None = "any",
    keys: tuple[str, ...] = (),
    names: tuple[str, ...] = ("scripted",),
) -> Iterator[ScriptedServer]:
    """Over models that are not there: `file` gives their names of files, and sizes."""
    size = file.stat().st_size
    cards = [ModelCard(name, 0, file.name, size, "text", context, 1000, chat_template is not None, {}) for name in names]
    tokenizer = Tokenizer.from_bytes("hf", _TOKENIZER.encode(), settings=TokenizerSettings(chat_template=chat_template))
    models = {card.id: TextModel(SimpleNamespace(), tokenizer, card) for card in cards}  # type: ignore[arg-type]
    script = Script()
    app = FastAPI()
    app.include_router(page.router(SimpleNamespace(models=models)))  # type: ignore[arg-type]
    app.add_api_route("/v1/chat/completions", _answers(script), methods=["POST"], response_model=None)
    app.add_middleware(ApiKeys, keys=keys, open_paths=tuple(page.FILES))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield ScriptedServer(f"http://127.0.0.1:{port}/", script)
    finally:
        server.should_exit = True
        thread.join(10)


def _answers(script: Script) -> Any:
    async def answer(request: Request) -> Any:
        script.asked.append(await request.json())
        if script.refusal is not None:
            status, message = script.refusal
            return JSONResponse({"error": {"message": message, "type": "some_error", "param": None, "code": None}}, status)
        return StreamingResponse(_events(script), media_type="text/event-stream")

    return answer


async def _events(script: Script) -> AsyncIterator[str]:
    script.left.append(True)
    for text in script.pieces:
        yield _event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
        await asyncio.sleep(script.pause_s)
    if script.error is not None:
        yield _event({"error": {"message": script.error, "type": "server_error", "param": None, "code": None}})
        return
    if script.ending == "broken":
        raise ConnectionAbortedError
    if script.ending == "early":
        return
    yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": script.finish}]})
    yield _event({"choices": [], "usage": {"prompt_tokens": script.prompt_tokens, "completion_tokens": len(script.pieces)}})
    yield "data: [DONE]\n\n"
    script.left[-1] = False


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
