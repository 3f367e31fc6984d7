"""Requests of all kinds to a server of a model called "demo": well-formed, malformed, given up, cancelled. Always the same ones."""

import json
import random
from dataclasses import dataclass, replace
from typing import Any

AN_HOUR = 36_000
"""An hour's worth: 10 requests a second."""
SEED = 7
SYSTEM = "You tell stories to children. They are short and end well. " * 3
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}}, "required": ["name"], "additionalProperties": False}
MOST_TOKENS = 300
"""Of an answer that is there to be cancelled; all others are shorter."""
MOST_BODY_BYTES = 50_000
"""That the server should take: some are larger, and refused for it."""
CHAT, COMPLETIONS, RESPONSES, MESSAGES, CANCEL = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/cancel",
)


@dataclass(frozen=True)
class Ask:
    """A request. `wrong`: the statuses it may be refused with; none: it is answered.

    `leave`: its client goes away after so many seconds. `cancel`: it is cancelled once it is being answered.
    """

    path: str
    body: Any
    wrong: tuple[int, ...] = ()
    leave: float | None = None
    cancel: bool = False

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()

    def __hash__(self) -> int:
        return hash((self.path, self.content))

    @property
    def is_greedy(self) -> bool:
        """Whether its answer is always the same."""
        return isinstance(self.body, dict) and self.body.get("temperature") == 0


def chat(text: str, **options: Any) -> Ask:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    return Ask(CHAT, {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 16, **options})


def completion(prompt: Any, **options: Any) -> Ask:
    return Ask(COMPLETIONS, {"model": "demo", "prompt": prompt, "temperature": 0, "max_tokens": 16, **options})


def response(given: Any, **options: Any) -> Ask:
    asked = {"model": "demo", "instructions": SYSTEM, "input": given, "temperature": 0, "max_output_tokens": 16}
    return Ask(RESPONSES, {**asked, **options})


def message(text: Any, **options: Any) -> Ask:
    messages = [{"role": "user", "content": text}]
    return Ask(MESSAGES, {"model": "demo", "system": SYSTEM, "messages": messages, "temperature": 0, "max_tokens": 16, **options})


def asks(count: int) -> list[Ask]:
    """Half well-formed, three in ten malformed, the rest given up in all stages, or cancelled by their ids."""
    chance = random.Random(SEED)
    found = []
    for _ in range(count):
        kind = chance.random()
        if kind < 0.5:
            found.append(well_formed(chance))
        elif kind < 0.64:
            found.append(replace(well_formed(chance), wrong=(), leave=chance.choice([0.0, 0.002, 0.01, 0.03])))
        elif kind < 0.7:
            found.append(to_be_cancelled(chance))
        else:
            ask = malformed(chance)
            found.append(replace(ask, wrong=ask.wrong or (400, 413)))
    return found


def well_formed(chance: random.Random) -> Ask:
    """One of many kinds; greedy ones recur, so that their answers can be compared."""
    text = _text(chance)
    seed = chance.randrange(100)
    return chance.choice(
        [
            chat(text),
            chat(text, n=2, stream=True),
            chat(text, logprobs=True, top_logprobs=3, stream=True, stream_options={"include_usage": True}),
            chat(text, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}),
            completion(text),
            completion(text, stream=True, stop=["the", "."]),
            completion(text, echo=True, logprobs=2, n=2),
            completion(text, regex="[a-z ]{5,9}"),
            completion((text + " ") * chance.choice([8, 20, 60])),
            completion([text, "The end"], stop="\n", max_tokens=30),
            completion(text, temperature=1, seed=seed, top_p=0.9, presence_penalty=1, ignore_eos=True, max_tokens=40),
            completion(text, temperature=5e-324, repetition_penalty=1e-300, frequency_penalty=-2, logit_bias={"5": 100}, stream=True),
            response(text),
            response([{"role": "user", "content": [{"type": "input_text", "text": text}]}], stream=True),
            response(text, text={"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}),
            message(text),
            message([{"type": "text", "text": text}], stream=True),
            message(text, temperature=1, top_k=5, stop_sequences=["the", "."]),
            Ask(CANCEL, {"id": f"chatcmpl-{seed}"}, wrong=(404,)),
        ]
    )


def to_be_cancelled(chance: random.Random) -> Ask:
    """A long answer in pieces, whose first brings its id."""
    text, more = _text(chance), {"stream": True, "temperature": 1}
    ask = chance.choice(
        [
            chat(text, **more, max_tokens=MOST_TOKENS, ignore_eos=True),
            chat(text, **more, max_tokens=MOST_TOKENS, ignore_eos=True, n=2),
            completion(text, **more, max_tokens=MOST_TOKENS, ignore_eos=True),
            response(text, **more, max_output_tokens=MOST_TOKENS),
            message(text, **more, max_tokens=MOST_TOKENS),
        ]
    )
    return replace(ask, cancel=True)


def malformed(chance: random.Random) -> Ask:
    text = "Once"
    return chance.choice(
        [
            Ask(COMPLETIONS, b'{"model": "demo", "prompt": ', (400,)),
            Ask(COMPLETIONS, b"\xff\xfe\x00", (400,)),
            Ask(COMPLETIONS, b"[" * 20_000, (400,)),
            Ask(CHAT, {"model": "demo", "messages": [{"role": "boss", "content": text}]}, (400,)),
            Ask(CHAT, {"model": "demo", "messages": []}, (400,)),
            Ask(COMPLETIONS, {"model": "../../etc/passwd", "prompt": text}, (404,)),
            completion(text, max_tokens=-(10**30)),
            completion(text, temperature=1e999),
            completion(text, n=10**9),
            completion(text, logit_bias={"99999999": 1}),
            completion(text, regex="(" * 50),
            completion(text, stream_options={"include_usage": True}),
            completion([0, 10**9]),
            completion("word " * 5000),
            completion("x" * (MOST_BODY_BYTES + 10_000)),
            response([{"role": "boss", "content": text}]),
            response(text, previous_response_id="resp_1"),
            message(5),
            message(text, max_tokens=-1),
            Ask(MESSAGES, {"model": "no such", "max_tokens": 5, "messages": [{"role": "user", "content": text}]}, (404,)),
            Ask(CANCEL, {"id": 5}, (400,)),
        ]
    )


def _text(chance: random.Random) -> str:
    return chance.choice(["Once upon a time", "Lily went to the park", "The dog was big", "One day, Tom"])
