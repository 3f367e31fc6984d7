"""A decoder's file as the server sees it: its tokenizer here, its engine in a process of its own."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from flatlm.errors import TokenizerError
from flatlm.generative.file_content import read_content
from flatlm.generative.file_tokenizer import file_tokenizer
from flatlm.generative.generate import Piece
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.logprobs import TokenLogprob
from flatlm.serving.engines.engine_process import Answer, EngineProcess
from flatlm.serving.engines.messages import EngineSpec, ScoreRequest, WriteRequest
from flatlm.serving.errors import BadRequest
from flatlm.serving.text_bounds import TextBound
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

Message: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class ModelCard:
    """What is told of a model."""

    id: str
    created: int
    """When the file was written: seconds since 1970."""
    file: str
    """Its name, without the folder."""
    bytes: int
    """Its size when it was opened: later the file may be gone."""
    kind: str
    context: int
    """The most tokens of a prompt and its answer."""
    vocab_size: int
    chat_template: bool
    manifest: Mapping[str, Any]


class TextModel:
    """Writes texts. For one event loop."""

    kind = "text"

    def __init__(self, process: EngineProcess, tokenizer: Tokenizer, card: ModelCard, template: str | None = None) -> None:
        """Of a started process; use `open`. `template`: Jinja text, in place of the tokenizer's own."""
        self.process, self.tokenizer, self.card, self.template = process, tokenizer, card, template
        self._bound = TextBound(tokenizer)

    @classmethod
    async def open(cls, spec: EngineSpec, *, name: str, chat_template: str | None = None, max_queue: int = 64) -> "TextModel":
        """Starts its process. `chat_template`: Jinja text in place of the file's own. Raises RuntimeFileError, TokenizerError."""
        content, stat = read_content(spec.file), spec.file.stat()
        tokenizer = file_tokenizer(spec.file, spec.tokenizer)
        process = EngineProcess(spec, name=name, most_waiting=max_queue)
        await process.start()
        card = ModelCard(
            id=name,
            created=int(stat.st_mtime),
            file=spec.file.name,
            bytes=stat.st_size,
            kind=cls.kind,
            context=process.facts["context"],
            vocab_size=process.facts["vocab_size"],
            chat_template=(chat_template or tokenizer.chat_template) is not None,
            manifest=content.manifest,
        )
        return cls(process, tokenizer, card, chat_template)

    @property
    def name(self) -> str:
        return self.card.id

    async def tokens(self, prompt: str) -> list[int]:
        """A prompt's ids. BadRequest for what is no text."""

        def ids() -> list[int]:
            self._require_may_fit(prompt)
            return self.tokenizer.encode(prompt)

        return await _in_a_thread(ids)

    async def chat_tokens(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
        """A conversation's ids, by the model's chat template. BadRequest where there is none, or where it refuses the messages."""
        if not self.card.chat_template:
            raise BadRequest(
                f"the model {self.name} has no chat template, so it does not chat: ask /v1/completions, or serve it with "
                "--chat-template plain (or another)",
                param="messages",
                code="no_chat_template",
            )

        def ids() -> list[int]:
            text = self.tokenizer.render_chat(messages, tools=tools, template=self.template)
            self._require_may_fit(text)
            return self.tokenizer.encode_chat(text, self.template)

        return await _in_a_thread(ids)

    def generate(self, ids: Sequence[int], config: GenerationConfig, *, deadline: float | None = None) -> Answer[Piece]:
        """The answer to a prompt: pieces as they come, the last with its finish reason. Leaving it stops it.

        `deadline`: an instant of time.monotonic(), at which the answer is cut ("length"). Raises BadRequest for a prompt that does not fit,
        QueueFull and EngineDown now, and what `Answer` says later.
        """
        self.require_fits(ids)
        return self.process.submit(WriteRequest(tuple(ids), config), deadline=deadline)

    def score(self, ids: Sequence[int], top: int, *, deadline: float | None = None) -> Answer[tuple[TokenLogprob, ...]]:
        """How probable each token of a text is, but the first, after those before it, with the `top` most probable ones. As `generate`."""
        self.require_fits(ids)
        return self.process.submit(ScoreRequest(tuple(ids), top), deadline=deadline)

    def require_fits(self, ids: Sequence[int]) -> None:
        """BadRequest for a prompt that has no tokens, too many, or ones that there are not."""
        if not ids:
            raise BadRequest("the prompt has no tokens; a text begins with at least one", param="prompt")
        if len(ids) > self.card.context:
            raise BadRequest(
                f"the prompt has {len(ids)} tokens, and this model's context is {self.card.context}, prompt and answer together; "
                "shorten it",
                param="prompt",
                code="context_length_exceeded",
            )
        if (unknown := next((i for i in ids if not 0 <= i < self.card.vocab_size), None)) is not None:
            raise BadRequest(f"token {unknown} is outside the model's vocabulary of {self.card.vocab_size}", param="prompt")

    def _require_may_fit(self, text: str) -> None:
        """BadRequest for a text that is too long however few tokens it has: nobody waits while it is cut into them."""
        if not self._bound.may_fit(text, self.card.context):
            raise BadRequest(
                f"the prompt has {len(text)} characters, more than this model's context of {self.card.context} tokens can be; shorten it",
                param="prompt",
                code="context_length_exceeded",
            )

    async def close(self) -> None:
        """Ends its process."""
        await self.process.close()


async def _in_a_thread(read: Callable[[], list[int]]) -> list[int]:
    """Long texts take long, and others are being answered."""
    try:
        return await asyncio.to_thread(read)
    except TokenizerError as error:
        raise BadRequest(str(error)) from error
