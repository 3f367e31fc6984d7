"""/v1/completions."""

import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from flatlm.generative.generate import Piece
from flatlm.generative.logprobs import TokenLogprob
from flatlm.serving.answers import sse
from flatlm.serving.answers.choices import FINISH, Choices, now
from flatlm.serving.answers.logprobs import CompletionLogprobs
from flatlm.serving.answers.respond import respond
from flatlm.serving.answers.writing import choices, generation_config, require_stream_options_fit
from flatlm.serving.errors import BadRequest
from flatlm.serving.schemas.answers import EVENTS, WRITES
from flatlm.serving.schemas.completions import Completion, CompletionRequest
from flatlm.serving.text_model import TextModel

if TYPE_CHECKING:
    from flatlm.serving.app import Server

MAX_TOKENS = 16
"""OpenAI's, where a request gives none."""


def router(server: "Server") -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["writing"])

    @routes.post("/completions", response_model=Completion, responses=EVENTS | WRITES)
    async def create_completion(request: Request, body: CompletionRequest) -> Response:
        """A text that goes on from a prompt; with stream = true, as server-sent events."""
        completion = await sse.unless_gone(request, begin(server, body))
        return await respond(request, completion, stream=body.stream)

    return routes


@dataclass(frozen=True)
class Prompt:
    """What is written on. `found`: of its tokens, where they are echoed with their probabilities."""

    ids: list[int]
    text: str
    """Where it is echoed."""
    found: tuple[TokenLogprob, ...] = ()


async def begin(server: "Server", body: CompletionRequest) -> "Written":
    """Sends a request to its model."""
    deadline = server.deadline()
    model = server.text_model(body.model)
    require_stream_options_fit(body)
    if body.suffix:
        raise BadRequest("suffix is not supported: the model writes on from a prompt, it does not fill in before a suffix", param="suffix")
    if body.best_of is not None and body.best_of > (body.n or 1):
        raise BadRequest("best_of larger than n is not supported: every text that is written is given back", param="best_of")
    given: Sequence[Any] = [body.prompt] if isinstance(body.prompt, str) or isinstance(body.prompt[0], int) else body.prompt
    n = choices(body, server.settings, model, prompts=len(given))
    prompts = [await _prompt(model, each, echo=bool(body.echo)) for each in given]
    longest = MAX_TOKENS if body.max_tokens is None else body.max_tokens
    config = generation_config(body, server.settings, model, max_new_tokens=longest, logprobs=body.logprobs)
    for prompt in prompts:
        model.require_fits(prompt.ids)
    if body.echo and body.logprobs is not None:
        prompts = [await _scored(model, prompt, body.logprobs, deadline) for prompt in prompts]
    written = Written(body, model, prompts, Choices(model, [prompt.ids for prompt in prompts], config, n=n, deadline=deadline))
    server.answers[written.id] = written.choices
    return written


async def _prompt(model: TextModel, given: str | Sequence[int], *, echo: bool) -> Prompt:
    if isinstance(given, str):
        return Prompt(await model.tokens(given), given)
    model.require_fits(given)
    return Prompt(list(given), model.tokenizer.decode(given) if echo else "")


async def _scored(model: TextModel, prompt: Prompt, top: int, deadline: float) -> Prompt:
    """With the probabilities of its own tokens."""
    found: list[TokenLogprob] = []
    async for parts in model.score(prompt.ids, top, deadline=deadline):
        found += [each for part in parts for each in part]
    return Prompt(prompt.ids, prompt.text, tuple(found))


class Written:
    """Texts on their way, in OpenAI's form."""

    def __init__(self, body: CompletionRequest, model: TextModel, prompts: Sequence[Prompt], choices: Choices) -> None:
        self.choices = choices
        self._body, self._model = body, model
        n = len(choices.answers) // len(prompts)
        self._echoes = [prompt.text if body.echo else "" for prompt in prompts for _ in range(n)]
        self._logprobs = None if body.logprobs is None else [self._begun(prompt) for prompt in prompts for _ in range(n)]
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": now(),
            "model": body.model,
            "system_fingerprint": "flatlm",
        }

    @property
    def id(self) -> str:
        return str(self._head["id"])

    async def whole(self) -> dict[str, Any]:
        """At once."""
        found: list[list[Piece]] = [[] for _ in self.choices.answers]
        async for place, pieces in self.choices.pieces():
            found[place] += pieces
        written = [self._choice(place, pieces) for place, pieces in enumerate(found)]
        return {**self._head, "choices": written, "usage": self.choices.usage()}

    async def events(self) -> AsyncIterator[bytes]:
        """As they come."""
        try:
            async for place, pieces in self.choices.pieces():
                chunk = {**self._head, "choices": [self._choice(place, pieces)]}
                yield sse.event(chunk | {"usage": None} if self._body.wants_usage else chunk)
            if self._body.wants_usage:
                yield sse.event({**self._head, "choices": [], "usage": self.choices.usage()})
            yield sse.DONE
        finally:
            self.choices.close()

    def _begun(self, prompt: Prompt) -> CompletionLogprobs:
        """A text's probabilities, with its prompt's where that is echoed."""
        tokenizer, found = self._model.tokenizer, CompletionLogprobs(top=self._body.logprobs or 0)
        if self._body.echo:
            found.add_prompt(prompt.ids, prompt.found, tokenizer.vocabulary.text(prompt.ids[0]), tokenizer.stream_decoder())
        return found

    def _choice(self, place: int, pieces: Sequence[Piece]) -> dict[str, Any]:
        reason, echo, logprobs = pieces[-1].finish_reason, self._echoes[place], None
        self._echoes[place] = ""
        if self._logprobs is not None:
            self._logprobs[place].add(pieces)
            logprobs = self._logprobs[place].take()
        return {
            "index": place,
            "text": echo + "".join(piece.text for piece in pieces),
            "logprobs": logprobs,
            "finish_reason": None if reason is None else FINISH[reason],
        }
