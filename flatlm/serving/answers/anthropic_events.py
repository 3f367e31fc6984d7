"""An answer of /v1/messages as it grows: Anthropic's events, and the message that they tell of."""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flatlm.serving.answers.choices import FINISH
from flatlm.serving.answers.typed_events import Call, Event
from flatlm.serving.errors import ApiError
from flatlm.serving.schemas.anthropic import MessagesRequest


class MessageTeller:
    """Text and calls go in as they come, events come out. `answer` is the message so far."""

    def __init__(self, request: MessagesRequest, *, prompt_tokens: int) -> None:
        self._text_is_open = False
        self.answer: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": request.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(prompt_tokens, 0, 0),
        }

    @property
    def id(self) -> str:
        return str(self.answer["id"])

    def begin(self) -> Iterator[Event]:
        yield {"type": "message_start", "message": json.loads(json.dumps(self.answer))}

    def push(self, text: str, calls: Sequence[Call] = ()) -> Iterator[Event]:
        if text:
            if not self._text_is_open:
                self._text_is_open = True
                yield self._start({"type": "text", "text": ""})
            self.answer["content"][-1]["text"] += text
            yield self._delta({"type": "text_delta", "text": text})
        for call in calls:
            yield from self._close()
            yield from self._call(call["function"])

    def end(self, *, reason: str, stop: str | None, usage: Mapping[str, Any]) -> Iterator[Event]:
        yield from self._close()
        if FINISH[reason] == "length":
            told = "max_tokens"
        elif self._has_call:
            told = "tool_use"
        else:
            told = "end_turn" if stop is None else "stop_sequence"
        ending = {"stop_reason": told, "stop_sequence": stop if told == "stop_sequence" else None}
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        self.answer |= ending | {"usage": _usage(usage["prompt_tokens"], cached, usage["completion_tokens"])}
        yield {"type": "message_delta", "delta": ending, "usage": self.answer["usage"]}
        yield {"type": "message_stop"}

    def fail(self, error: ApiError) -> Iterator[Event]:
        yield error.to_anthropic()

    @property
    def _has_call(self) -> bool:
        return any(block["type"] == "tool_use" for block in self.answer["content"])

    def _call(self, function: Mapping[str, str]) -> Iterator[Event]:
        block = {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": function["name"], "input": {}}
        given = _object(function["arguments"])
        yield self._start(block)
        yield self._delta({"type": "input_json_delta", "partial_json": json.dumps(given)})
        self.answer["content"][-1]["input"] = given
        yield self._stop()

    def _close(self) -> Iterator[Event]:
        if self._text_is_open:
            self._text_is_open = False
            yield self._stop()

    def _start(self, block: dict[str, Any]) -> Event:
        self.answer["content"].append(dict(block))
        return {"type": "content_block_start", "index": len(self.answer["content"]) - 1, "content_block": block}

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": len(self.answer["content"]) - 1, "delta": delta}

    def _stop(self) -> Event:
        return {"type": "content_block_stop", "index": len(self.answer["content"]) - 1}


def _object(arguments: str) -> dict[str, Any]:
    """A call's arguments. A model may write what is no object; Anthropic's `input` is always one."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        value = arguments
    return value if isinstance(value, dict) else {"arguments": value}


def _usage(prompt: int, cached: int, made: int) -> dict[str, int]:
    """Anthropic's input_tokens are those that were not read before."""
    return {
        "input_tokens": prompt - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": made,
    }
