"""`flatlm.pipeline(...)`: text in, text out, over an exported file or a checkpoint, which is exported into a cache first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeGuard, overload

from flatlm.errors import RuntimeFileError
from flatlm.generative.engine_config import EngineConfig
from flatlm.generative.generate import Generation, Piece, joined
from flatlm.generative.generation_config import GenerationConfig
from flatlm.generative.runner import Runner
from flatlm.generative.session import Session
from flatlm.generative.source import open_source
from flatlm.progress import Progress
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

Message: TypeAlias = Mapping[str, Any]
"""One turn of a conversation, with "role" and "content"."""
Prompt: TypeAlias = str | Sequence[Message]
"""A text, which goes to the model as it is; or a conversation, which goes through the model's chat template."""


def pipeline(
    source: str | Path,
    *,
    backend_config: EngineConfig | None = None,
    gen_config: GenerationConfig | None = None,
    tokenizer: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> "Pipeline":
    """A model that is ready to be asked, from a `.tflite` file, a `.litertlm` bundle, a checkpoint's directory or a `.gguf` file.

        with flatlm.pipeline("checkpoint", recipe="dynamic_int8") as pipe:
            print(pipe("Once upon a time").text)

    A checkpoint is exported, and proved, when it is first used, and its file kept (`generative/export_cache.py`). `options`: fields of
    `EngineConfig`, which win over `backend_config`; `module_map` is short for `custom_module_map`. `gen_config`: how answers are written
    where a call says nothing else. `tokenizer`: a directory with one, for a `.tflite` file, which has none of its own.

    Raises a FlatlmError for bad input, VerificationFailed where the exported file is too far from the checkpoint, and TypeError for an
    option that there is not.
    """
    if "module_map" in options:
        options["custom_module_map"] = options.pop("module_map")
    config, path = replace(backend_config or EngineConfig(), **options), Path(source)
    own = None if tokenizer is None else Path(tokenizer)
    found = open_source(path, config, tokenizer=own, progress=progress)
    runner = Runner.open(found.file, threads=config.threads)
    return Pipeline(runner, found.tokenizer, gen_config or GenerationConfig(), share_beginnings=config.enable_prefix_caching)


class Pipeline:
    """Answers prompts with one runner, one after the other: use `pipeline`. Not for several threads at once.

    A batch is a list of prompts, answered in its order, each as if it were alone. The file's signatures are for one text, and a step
    of one waits for memory, not for arithmetic; so nothing is won by taking turns between texts, and other runners would each need a cache.
    """

    def __init__(self, runner: Runner, tokenizer: Tokenizer, gen_config: GenerationConfig, *, share_beginnings: bool = False) -> None:
        self.runner, self.tokenizer, self.gen_config = runner, tokenizer, gen_config
        self._share = share_beginnings
        self._session = Session(runner, tokenizer)
        self._closed = False

    @overload
    def __call__(self, prompts: str, gen_config: GenerationConfig | None = None, **options: Any) -> Generation: ...
    @overload
    def __call__(
        self, prompts: Sequence[Any], gen_config: GenerationConfig | None = None, **options: Any
    ) -> Generation | list[Generation]: ...
    def __call__(
        self, prompts: Prompt | Sequence[Prompt], gen_config: GenerationConfig | None = None, **options: Any
    ) -> Generation | list[Generation]:
        """The answer to a text or a conversation; to a list of such, the list of answers in its order.

        `options`: fields of `GenerationConfig`, such as `max_new_tokens=20`. Every prompt is read as tokens before the first is answered:
        TokenizerError where one has no chat template to go through, RuntimeFileError where one does not fit the cache.
        """
        config = self._config(gen_config, options)
        alone = isinstance(prompts, str) or _is_conversation(prompts) or not isinstance(prompts, Sequence)
        texts = [self.encode(prompt) for prompt in ([prompts] if alone else prompts)]
        answers = [joined(self._answer(ids, config), ids) for ids in texts]
        return answers[0] if alone else answers

    def stream(self, prompt: Prompt, gen_config: GenerationConfig | None = None, **options: Any) -> Iterator[Piece]:
        """The answer in pieces, as they come: empty ones while the prompt is read; the last has the reason why it ended, and no token.

        RuntimeFileError for going on with a stream after another prompt was begun.
        """
        config = self._config(gen_config, options)
        return self._answer(self.encode(prompt), config)

    def encode(self, prompt: object) -> list[int]:
        """A prompt's tokens, at least one and no more than the cache holds. Raises TokenizerError, RuntimeFileError."""
        if self._closed:
            raise RuntimeFileError(f"{self.runner.file.path}: this pipeline was closed; make another")
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt)
        elif _is_conversation(prompt):
            ids = self.tokenizer.apply_chat_template(prompt)
        else:
            kind = type(prompt).__name__
            raise RuntimeFileError(f"a prompt is a text, or a list of messages with 'role' and 'content', and not of type {kind}")
        if not ids:
            raise RuntimeFileError("the prompt has no tokens; a text begins with at least one")
        if len(ids) > self.runner.cache_length:
            raise RuntimeFileError(
                f"{self.runner.file.path}: the prompt of {len(ids)} tokens does not fit its context of {self.runner.cache_length}; "
                "shorten it, or give a larger kv_cache_len to the export"
            )
        return ids

    def close(self) -> None:
        """Frees the model. The pipeline cannot be used after it."""
        if not self._closed:
            self._closed = True
            self._session.reset()
            self.runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _config(self, given: GenerationConfig | None, options: Mapping[str, Any]) -> GenerationConfig:
        return replace(given or self.gen_config, **options)

    def _answer(self, ids: Sequence[int], config: GenerationConfig) -> Iterator[Piece]:
        """Reads the prompt when the first piece is asked for."""
        if not self._share:
            self._session.reset()
        yield from self._session.stream(ids, config)


def _is_conversation(prompt: object) -> TypeGuard[Sequence[Message]]:
    return isinstance(prompt, Sequence) and not isinstance(prompt, str) and bool(prompt) and all(isinstance(m, Mapping) for m in prompt)
