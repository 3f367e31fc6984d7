"""Answers that fail: before their first event, and after it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from flatlm.generative.generate import Piece
from flatlm.serving.answers.response_events import ResponseTeller
from flatlm.serving.answers.typed_events import Told
from flatlm.serving.errors import ApiError, BadRequest, EngineLost
from flatlm.serving.routes.chat import Chat
from flatlm.serving.schemas.responses import ResponsesRequest


class Failing:
    """A chat whose model gives some text, and fails then."""

    def __init__(self, *texts: str, error: ApiError) -> None:
        self.texts, self.error = texts, error
        self.choices = self
        self.closed = False

    async def parts(self) -> AsyncIterator[Any]:
        for text in self.texts:
            yield 0, text, [], [Piece(text, 1)]
        raise self.error

    def close(self) -> None:
        self.closed = True


async def read(chat: Failing) -> list[dict[str, Any]]:
    teller = ResponseTeller(ResponsesRequest(model="m", input="x"))
    found = [data.decode() async for data in Told(cast(Chat, chat), teller).events()]
    told = [(text.split("\n")[0], json.loads(text.split("data: ")[1])) for text in found]
    assert all(name == f"event: {event['type']}" for name, event in told)
    return [event for _, event in told]


def test_a_failure_after_the_first_event_is_told() -> None:
    chat = Failing("Once", error=EngineLost("m", "was ended by SIGKILL"))
    found = asyncio.run(read(chat))
    assert (found[0]["type"], found[-1]["type"]) == ("response.created", "response.failed")
    assert "SIGKILL" in found[-1]["response"]["error"]["message"]
    assert found[-1]["response"]["output"][0]["content"][0]["text"] == "Once"
    assert chat.closed


def test_a_failure_before_it_has_its_own_status() -> None:
    chat = Failing(error=BadRequest("no such grammar"))
    with pytest.raises(BadRequest, match="no such grammar"):
        asyncio.run(read(chat))
    assert chat.closed


def test_without_a_stream_there_is_no_half_answer() -> None:
    chat = cast(Chat, Failing("Once", error=EngineLost("m", "ended")))
    with pytest.raises(EngineLost):
        asyncio.run(Told(chat, ResponseTeller(ResponsesRequest(model="m", input="x"))).whole())
