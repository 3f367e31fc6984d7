"""Tasks that write: a text goes in, a text comes out, whatever kind of model the file holds.

A decoder continues the prompt; an encoder-decoder reads it and writes another text; a model that fills blanks fills those of the prompt, or
one at its end.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from flatlm.errors import RuntimeFileError
from flatlm.generative.generate import FinishReason, Generation
from flatlm.generative.generation_config import GenerationConfig
from flatlm.tasks.runner import OpenedFile, TaskRunner
from flatlm.tasks.table import DECODER, ENCODER_DECODER, INFILLING, load

TEXT = "{text}"


@dataclass(frozen=True)
class Written:
    """What was written, without the token that ended it. `filled`: the whole text, of a model that fills blanks."""

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: FinishReason
    filled: str | None = None


Write = Callable[[str, GenerationConfig], Written]


class WritingTask(TaskRunner):
    """lm, seq2seq, title-generation, poetry: they differ in what the model was trained for, and in the prompt."""

    options: ClassVar[tuple[str, ...]] = ("prompt", "max_new_tokens", "gen_config")

    def __init__(self, opened: OpenedFile) -> None:
        super().__init__(opened)
        self._runner, self._write = _WRITERS[opened.kind](opened)

    def predict(  # type: ignore[override]
        self, text: str, *, prompt: str = TEXT, max_new_tokens: int | None = None, gen_config: GenerationConfig | None = None
    ) -> Written:
        """What the model writes about a text, greedily unless a configuration says otherwise; `max_new_tokens` wins over its own.

        `prompt`: what is around the text, such as "summarize: {text}"; the model's training says which. Raises RuntimeFileError where it
        is too long for the file.
        """
        if TEXT not in prompt:
            raise RuntimeFileError(f"the prompt {prompt[:40]!r} has no {TEXT}, where the text goes")
        config = gen_config or GenerationConfig()
        config = config if max_new_tokens is None else replace(config, max_new_tokens=max_new_tokens)
        return self._write(prompt.replace(TEXT, text), config)

    def close(self) -> None:
        self._runner.close()


def _decoder(opened: OpenedFile) -> tuple[Any, Write]:
    from flatlm.generative.generate import generate
    from flatlm.generative.runner import Runner

    return _asked(opened, Runner, generate)


def _encoder_decoder(opened: OpenedFile) -> tuple[Any, Write]:
    folder = "flatlm.generative.encoder_decoders"
    return _asked(opened, load(f"{folder}.runner:EncoderDecoderRunner"), load(f"{folder}.generate:generate"))


def _asked(opened: OpenedFile, runner_class: Any, generate: Callable[..., Generation]) -> tuple[Any, Write]:
    """A runner that writes one text about another."""
    runner = runner_class.open(opened.file, threads=opened.threads)

    def write(prompt: str, config: GenerationConfig) -> Written:
        ids = opened.tokenizer.encode(prompt)
        found = generate(runner, opened.output_tokenizer, ids, config)
        return Written(found.text, found.token_ids, found.prompt_token_ids, found.finish_reason)

    return runner, write


def _infilling(opened: OpenedFile) -> tuple[Any, Write]:
    folder, tokenizer = "flatlm.generative.infilling", opened.tokenizer
    runner = load(f"{folder}.runner:InfillingRunner").open(opened.file, threads=opened.threads)
    context, fill = load(f"{folder}.fill:Context"), load(f"{folder}.fill:fill")

    def write(prompt: str, config: GenerationConfig) -> Written:
        found = fill(runner, tokenizer, context.of(tokenizer, prompt), config)
        answers = "\n".join(span.text for span in found.spans)
        return Written(answers, found.token_ids, found.prompt_token_ids, found.finish_reason, found.text)

    return runner, write


_WRITERS: Mapping[str, Callable[[OpenedFile], tuple[Any, Write]]] = {
    DECODER: _decoder,
    ENCODER_DECODER: _encoder_decoder,
    INFILLING: _infilling,
}
"""Of a kind of file: its runner, and how it writes."""
