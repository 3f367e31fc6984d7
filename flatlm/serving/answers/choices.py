"""The texts that one request asks for, written side by side."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

from flatlm.generative.generate import Piece
from flatlm.generative.generation_config import GenerationConfig
from flatlm.serving.engines.engine_process import Answer
from flatlm.serving.schemas.common import FinishReason
from flatlm.serving.text_model import TextModel

FINISH: dict[str, FinishReason] = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}
"""OpenAI's names of why a text ended."""


class Choices:
    """`n` texts of each prompt: those of the first prompt, then those of the second. Leave it with `close`."""

    def __init__(self, model: TextModel, prompts: Sequence[Sequence[int]], config: GenerationConfig, *, n: int, deadline: float) -> None:
        """Raises BadRequest, QueueFull, EngineDown: then none is begun."""
        self.answers: list[Answer[Piece]] = []
        self.prompt_tokens = sum(map(len, prompts))
        self._prompts, self._n = len(prompts), n
        self._made = 0
        try:
            for ids in prompts:
                for place in range(n):
                    seed = None if config.seed is None else (config.seed + place) % 2**64
                    self.answers.append(model.generate(ids, replace(config, seed=seed), deadline=deadline))
        except BaseException:
            self.close()
            raise

    async def pieces(self) -> AsyncIterator[tuple[int, list[Piece]]]:
        """What is written, with the text's place, as it comes. Raises what `Answer` raises."""
        if len(self.answers) == 1:
            async for pieces in self.answers[0]:
                yield 0, self._counted(pieces)
            return
        waiting = {asyncio.ensure_future(_next(answer)): place for place, answer in enumerate(self.answers)}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=waiting.__getitem__):
                    place = waiting.pop(task)
                    if (found := task.result()) is not None:
                        yield place, self._counted(found)
                        waiting[asyncio.ensure_future(_next(self.answers[place]))] = place
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def usage(self) -> dict[str, Any]:
        """OpenAI's, of what has ended. Of a prompt that is written on n times, the first time counts."""
        shared = [answer.stats.shared_tokens if answer.stats else 0 for answer in self.answers]
        cached = sum(min(shared[place * self._n : (place + 1) * self._n]) for place in range(self._prompts))
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self._made,
            "total_tokens": self.prompt_tokens + self._made,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def stop(self) -> bool:
        """Ends what has not ended, as if the texts ended here. False where all had."""
        return sum(answer.stop(Piece("", None, "stop")) for answer in self.answers) > 0  # all of them, so not any()

    def close(self) -> None:
        """Stops what has not ended."""
        for answer in self.answers:
            answer.cancel()

    def _counted(self, pieces: list[Piece]) -> list[Piece]:
        self._made += sum(piece.token_id is not None for piece in pieces)
        return pieces


async def _next(answer: Answer[Piece]) -> list[Piece] | None:
    return await anext(answer, None)


def now() -> int:
    """`created`: seconds since 1970."""
    return int(time.time())
