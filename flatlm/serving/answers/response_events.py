"""An answer of /v1/responses as it grows: OpenAI's typed events, and the response that they tell of."""

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flatlm.serving.answers.choices import FINISH, now
from flatlm.serving.answers.typed_events import Call, Event
from flatlm.serving.answers.writing import TEMPERATURE
from flatlm.serving.errors import ApiError
from flatlm.serving.schemas.responses import ResponsesRequest


class ResponseTeller:
    """Text and calls go in as they come, events come out. `answer` is the response so far."""

    def __init__(self, request: ResponsesRequest) -> None:
        self._numbers = 0
        self._message: dict[str, Any] | None = None
        """The item that text is added to."""
        self.answer = _beginning(request)

    @property
    def id(self) -> str:
        return str(self.answer["id"])

    def begin(self) -> Iterator[Event]:
        yield self._event("response.created", response=self._copy())
        yield self._event("response.in_progress", response=self._copy())

    def push(self, text: str, calls: Sequence[Call] = ()) -> Iterator[Event]:
        if text:
            if self._message is None:
                yield from self._open()
            assert self._message is not None
            self._message["content"][0]["text"] += text
            yield self._event("response.output_text.delta", **self._place(), delta=text, logprobs=[])
        for call in calls:
            yield from self._close("completed")
            yield from self._call(call["id"], call["function"])

    def end(self, *, reason: str, stop: str | None, usage: Mapping[str, Any]) -> Iterator[Event]:
        status = "incomplete" if FINISH[reason] == "length" else "completed"
        if not self.answer["output"]:
            yield from self._open()
        yield from self._close(status)
        self.answer["status"] = status
        self.answer["incomplete_details"] = {"reason": "max_output_tokens"} if status == "incomplete" else None
        self.answer["usage"] = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": usage["prompt_tokens_details"]["cached_tokens"]},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }
        yield self._event(f"response.{status}", response=self._copy())

    def fail(self, error: ApiError) -> Iterator[Event]:
        self.answer["status"], self.answer["error"] = "failed", {"code": "server_error", "message": error.message}
        yield self._event("response.failed", response=self._copy())

    def _open(self) -> Iterator[Event]:
        self._message = {"id": _id("msg"), "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        self.answer["output"].append(self._message)
        yield self._event("response.output_item.added", output_index=self._index, item=_copy(self._message))
        self._message["content"].append({"type": "output_text", "text": "", "annotations": [], "logprobs": []})
        yield self._event("response.content_part.added", **self._place(), part=_copy(self._message["content"][0]))

    def _close(self, status: str) -> Iterator[Event]:
        if self._message is None:
            return
        part = self._message["content"][0]
        yield self._event("response.output_text.done", **self._place(), text=part["text"], logprobs=[])
        yield self._event("response.content_part.done", **self._place(), part=_copy(part))
        self._message["status"] = status
        yield self._event("response.output_item.done", output_index=self._index, item=_copy(self._message))
        self._message = None

    def _call(self, call_id: str, function: Mapping[str, str]) -> Iterator[Event]:
        item = {"id": _id("fc"), "type": "function_call", "status": "in_progress", "call_id": call_id, "name": function["name"]}
        item["arguments"] = ""
        self.answer["output"].append(item)
        place = {"item_id": item["id"], "output_index": self._index}
        yield self._event("response.output_item.added", output_index=self._index, item=_copy(item))
        yield self._event("response.function_call_arguments.delta", **place, delta=function["arguments"])
        item |= {"arguments": function["arguments"], "status": "completed"}
        yield self._event("response.function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"])
        yield self._event("response.output_item.done", output_index=self._index, item=_copy(item))

    @property
    def _index(self) -> int:
        """Of the item that is being told."""
        return len(self.answer["output"]) - 1

    def _place(self) -> dict[str, Any]:
        assert self._message is not None
        return {"item_id": self._message["id"], "output_index": self._index, "content_index": 0}

    def _event(self, event_type: str, /, **fields: Any) -> Event:
        number, self._numbers = self._numbers, self._numbers + 1
        return {"type": event_type, "sequence_number": number, **fields}

    def _copy(self) -> Any:
        return _copy(self.answer)


def _beginning(request: ResponsesRequest) -> dict[str, Any]:
    form = None if request.text is None else request.text.format
    choice = request.tool_choice or "auto"
    return {
        "id": _id("resp"),
        "object": "response",
        "created_at": now(),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "metadata": request.metadata or {},
        "model": request.model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "store": False,
        "temperature": TEMPERATURE if request.temperature is None else request.temperature,
        "text": {"format": {"type": "text"} if form is None else form.model_dump(by_alias=True)},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [tool.model_dump() for tool in request.tools or ()],
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "truncation": "disabled",
        "usage": None,
    }


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"


def _copy(value: Any) -> Any:
    """As it is now: events are sent later."""
    return json.loads(json.dumps(value))
