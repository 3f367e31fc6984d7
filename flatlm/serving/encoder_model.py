"""An encoder's file as the server sees it: its tokenizer and its engine are in a process of its own."""

from collections.abc import Sequence
from typing import Any

from flatlm.generative.file_content import read_content
from flatlm.serving.engines.encoder_messages import Embedded, EmbedRequest, EncoderFacts, Scored, ScoreRequest, Text
from flatlm.serving.engines.engine_process import EngineProcess
from flatlm.serving.engines.messages import EngineSpec
from flatlm.serving.errors import BadRequest
from flatlm.serving.text_model import ModelCard


class EncoderModel:
    """Reads texts: gives vectors, or tells how well two texts match. For one event loop."""

    kind = "encoder"

    def __init__(self, process: EngineProcess, facts: EncoderFacts, card: ModelCard) -> None:
        """Of a started process; use `open`."""
        self.process, self.facts, self.card = process, facts, card

    @classmethod
    async def open(cls, spec: EngineSpec, *, name: str, max_queue: int = 64) -> "EncoderModel":
        """Starts its process. Raises RuntimeFileError, TokenizerError."""
        content, stat = read_content(spec.file), spec.file.stat()
        process = EngineProcess(spec, name=name, most_waiting=max_queue)
        await process.start()
        facts = EncoderFacts(**process.facts)
        card = ModelCard(
            id=name,
            created=int(stat.st_mtime),
            file=spec.file.name,
            bytes=stat.st_size,
            kind=cls.kind,
            context=facts.longest,
            vocab_size=facts.vocab_size,
            chat_template=False,
            manifest=content.manifest,
        )
        return cls(process, facts, card)

    @property
    def name(self) -> str:
        return self.card.id

    @property
    def what(self) -> str:
        """In words."""
        return f"an encoder exported for {self.facts.head}"

    async def embed(self, texts: Sequence[Text], *, truncate: bool = False, deadline: float | None = None) -> list[Embedded]:
        """Each text's vector, as the file gives it. Raises BadRequest, QueueFull, EngineDown, and what `Answer` says."""
        if not self.facts.embeds:
            raise BadRequest(
                f"the model {self.name} is {self.what}, which gives no vectors; this needs one exported for embedding or features",
                param="model",
                code="wrong_kind_of_model",
            )
        request = EmbedRequest(tuple(text if isinstance(text, str) else tuple(text) for text in texts), truncate)
        return await self._all(request, deadline, "input")

    async def score(self, query: str, documents: Sequence[str], *, truncate: bool = False, deadline: float | None = None) -> list[Scored]:
        """How well each document answers the query. Raises what `embed` raises."""
        return await self._all(ScoreRequest(query, tuple(documents), truncate), deadline, "documents")

    async def close(self) -> None:
        """Ends its process."""
        await self.process.close()

    async def _all(self, request: Any, deadline: float | None, param: str) -> list[Any]:
        answer = self.process.submit(request, deadline=deadline)
        items: list[Any] = []
        try:
            async for some in answer:
                items += some
        except BadRequest as error:
            raise BadRequest(error.message, param=param) from error
        finally:
            answer.cancel()
        return items
