"""Answers of a server's APIs, whole or in events: that their form is right, what was written, and why it ended. AssertionError else."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.request_mix import MESSAGES, RESPONSES

Answer = dict[str, Any]
CANCELLED = {RESPONSES: "completed", MESSAGES: "end_turn"}
"""Why an answer that was cancelled says that it ended; the other APIs say "stop"."""


def events(pieces: Iterable[str]) -> Iterator[Answer]:
    """Of a stream, as they come; the last may be {}, for the [DONE] of APIs that have it."""
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n\n")
        for event in whole:
            data = event.partition("data: ")[2]
            yield {} if data == "[DONE]" else json.loads(data)
    assert not rest, rest


def id_of(event: Answer) -> str:
    """The answer's, in its first event."""
    return str((event.get("response") or event.get("message") or event)["id"])


def read(path: str, answer: Answer) -> tuple[list[str], set[str]]:
    """The text of each choice, and why they ended."""
    if path == RESPONSES:
        usage, limit = answer["usage"], answer["max_output_tokens"]
        assert answer["object"] == "response" and 0 <= usage["output_tokens"] <= limit, answer
        assert (answer["status"] == "incomplete") == (answer["incomplete_details"] is not None), answer
        (item,) = answer["output"]
        assert item["status"] == answer["status"], answer
        return ["".join(part["text"] for part in item["content"])], {answer["status"]}
    if path == MESSAGES:
        assert (answer["type"], answer["role"]) == ("message", "assistant") and answer["usage"]["output_tokens"] >= 0, answer
        return ["".join(block["text"] for block in answer["content"])], {answer["stop_reason"]}
    assert answer["usage"]["completion_tokens"] >= 0, answer
    return [_text_of(choice) for choice in answer["choices"]], {choice["finish_reason"] for choice in answer["choices"]}


def read_events(path: str, told: list[Answer]) -> tuple[list[str], set[str]]:
    """The same of a stream."""
    if path == RESPONSES:
        assert [event["sequence_number"] for event in told] == list(range(len(told))), told
        assert told[0]["type"] == "response.created", told
        text = "".join(event["delta"] for event in told if event["type"] == "response.output_text.delta")
        found = read(path, told[-1]["response"])
        assert found == ([text], {told[-1]["type"].removeprefix("response.")}), told
        return found
    if path == MESSAGES:
        assert (told[0]["type"], told[-2]["type"], told[-1]["type"]) == ("message_start", "message_delta", "message_stop"), told
        text = "".join(event["delta"]["text"] for event in told if event["type"] == "content_block_delta")
        return [text], {told[-2]["delta"]["stop_reason"]}
    assert told[-1] == {}, told
    texts, reasons = dict[int, str](), dict[int, str]()
    for event in told[:-1]:
        for choice in event["choices"]:
            index = choice["index"]
            assert index not in reasons, told
            texts[index] = texts.get(index, "") + _text_of(choice)
            reasons |= {index: choice["finish_reason"]} if choice["finish_reason"] else {}
    assert reasons.keys() == texts.keys(), told
    return [texts[index] for index in sorted(texts)], set(reasons.values())


def _text_of(choice: Answer) -> str:
    if "text" in choice:
        return str(choice["text"])
    return str((choice.get("message") or choice["delta"]).get("content") or "")
