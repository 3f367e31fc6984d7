"""`flatlm.pipeline(...)`: text in, text out, over an exported file or a checkpoint, which is exported into a cache first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import takewhile
from pathlib import Path
from types import NoneType, TracebackType
from typing import Any, Self, TypeAlias, TypeGuard, overload

from flatlm.errors import CheckpointError, ConfigError, ExportError, RuntimeFileError
from flatlm.generative.file_tokenizer import file_tokenizer
from flatlm.generative.generate import Generation, Piece, joined, stream
from flatlm.generative.runner import Runner
from flatlm.generative.sampling import Sampler
from flatlm.progress import Progress
from flatlm.quantize.recipes import Recipe
from flatlm.utilities.checkpoints.gguf_paths import find_gguf
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.reading import Reading
from flatlm.utilities.recipe_file import find_recipe
from flatlm.utilities.tokenizer import Tokenizer

EXPORTED = (".tflite", ".litertlm")
RUNNING = ("threads", "enable_prefix_caching")
"""What an `EngineConfig` says of running a file; all else is about exporting it."""

Message: TypeAlias = Mapping[str, Any]
"""One turn of a conversation, with "role" and "content"."""
Prompt: TypeAlias = str | Sequence[Message]
"""A text, which goes to the model as it is; or a conversation, which goes through the model's chat template."""


@dataclass(frozen=True)
class EngineConfig:
    """How a checkpoint is exported, and its file run. None: the default that fits the model.

    With a file that is exported already, only the fields in RUNNING may be given.
    """

    recipe: str | Recipe = "dynamic_int8"
    """A recipe, the name of a built-in one, or a path that ends in .json."""
    kv_cache_len: int | None = None
    """The most tokens of a prompt and its answer together."""
    prefill_lengths: tuple[int, ...] | None = None
    custom_module_map: str | Path | None = None
    """A Python file whose MODULE_MAP names classes for architectures. It is run."""
    custom: str | Path | None = None
    """A Python file whose __model__ is the model. It is run."""
    family: str | None = None
    """The model's family, by the name that `flatlm models` lists."""
    kv_cache_dtype: str = "float32"
    verify: bool = True
    """Prove the exported file against the checkpoint before it is kept."""
    threads: int | None = None
    """None: one for each core."""
    enable_prefix_caching: bool = False
    """Read what a prompt has in common with the last text once. Answers may then differ in the last digits of their probabilities."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a field of another type."""
        for field in fields(self):
            wanted, what = _WANTED[field.name]
            value = getattr(self, field.name)
            if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
                raise ConfigError(f"{field.name} = {value!r} must be {what}")
        if not all(type(length) is int for length in self.prefill_lengths or ()):
            raise ConfigError(f"prefill_lengths = {self.prefill_lengths!r} must be whole numbers, such as (128, 512)")


_NUMBER = ((int, NoneType), "a whole number, or None")
_FILE = ((str, Path, NoneType), "the path of a Python file, or None")
_SWITCH = ((bool,), "True or False")
_WANTED: Mapping[str, tuple[tuple[type, ...], str]] = {
    "recipe": ((str, Recipe), "the name of a recipe, its file, or a Recipe"),
    "kv_cache_len": _NUMBER,
    "prefill_lengths": ((tuple, list, NoneType), "a tuple of whole numbers, such as (128, 512), or None"),
    "custom_module_map": _FILE,
    "custom": _FILE,
    "family": ((str, NoneType), "the name of a family, or None"),
    "kv_cache_dtype": ((str,), "the name of a type, such as 'float32'"),
    "verify": _SWITCH,
    "threads": _NUMBER,
    "enable_prefix_caching": _SWITCH,
}
"""The types of an EngineConfig's fields, and what they are in words."""


@dataclass(frozen=True)
class GenerationConfig:
    """How an answer is written: what `flatlm generate` takes. Temperature 0 is greedy. One seed gives each prompt the same draws."""

    max_new_tokens: int | None = 128
    """None: until the text ends, or the cache is full."""
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def sampler(self) -> Sampler:
        """Raises RuntimeFileError for numbers that are not possible."""
        return Sampler(self.temperature, self.top_k, self.top_p, self.seed)


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
    if path.suffix in EXPORTED:
        _require_exported(path, config)
        file, texts = path, file_tokenizer(path, own)
    else:
        file, texts = _exported(path, config, progress), Tokenizer.load(path if own is None else own)
    runner = Runner.open(file, threads=config.threads)
    return Pipeline(runner, texts, gen_config or GenerationConfig(), share_beginnings=config.enable_prefix_caching)


class Pipeline:
    """Answers prompts with one runner, one after the other: use `pipeline`. Not for several threads at once.

    A batch is a list of prompts, answered in its order, each as if it were alone. The file's signatures are for one text, and a step
    of one waits for memory, not for arithmetic; so nothing is won by taking turns between texts, and other runners would each need a cache.
    """

    def __init__(self, runner: Runner, tokenizer: Tokenizer, gen_config: GenerationConfig, *, share_beginnings: bool = False) -> None:
        self.runner, self.tokenizer, self.gen_config = runner, tokenizer, gen_config
        self._share = share_beginnings
        self._held: list[int] = []  # the tokens in the runner's cache
        self._turn = 0
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
        answers = [joined(self._answer(ids, config, config.sampler()), ids) for ids in texts]
        return answers[0] if alone else answers

    def stream(self, prompt: Prompt, gen_config: GenerationConfig | None = None, **options: Any) -> Iterator[Piece]:
        """The answer in pieces, as they come; the last has the reason why it ended, and no token.

        RuntimeFileError for going on with a stream after another prompt was begun.
        """
        config = self._config(gen_config, options)
        return self._answer(self.encode(prompt), config, config.sampler())

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
        self._turn += 1
        if not self._closed:
            self._closed = True
            self.runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _config(self, given: GenerationConfig | None, options: Mapping[str, Any]) -> GenerationConfig:
        return replace(given or self.gen_config, **options)

    def _answer(self, ids: Sequence[int], config: GenerationConfig, sampler: Sampler) -> Iterator[Piece]:
        """Reads the prompt when the first piece is asked for."""
        self._turn += 1
        turn, shared = self._turn, self._begin(ids)
        pieces = stream(self.runner, self.tokenizer, ids, max_new_tokens=config.max_new_tokens, sampler=sampler, held=shared)
        while (piece := next(pieces, None)) is not None:
            if piece.token_id is not None:
                self._held.append(piece.token_id)
            yield piece
            if turn != self._turn:
                raise RuntimeFileError("this stream has ended: its pipeline was closed, or asked for another answer meanwhile")

    def _begin(self, ids: Sequence[int]) -> int:
        """Make the cache ready for a prompt; how many of its tokens are in it already, at most all but the last."""
        held = self._held[: self.runner.position]  # the last token that was made need not have been read
        self._held = list(ids)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(held, ids[:-1], strict=False))) if self._share else 0
        if shared and self.runner.can_rewind(shared):
            self.runner.rewind(shared)
            return shared
        self.runner.reset()
        return 0


def _is_conversation(prompt: object) -> TypeGuard[Sequence[Message]]:
    return isinstance(prompt, Sequence) and not isinstance(prompt, str) and bool(prompt) and all(isinstance(m, Mapping) for m in prompt)


def _require_exported(path: Path, config: EngineConfig) -> None:
    """That the file is there, and that nothing is asked for which only an export could give."""
    if not path.is_file():
        raise RuntimeFileError(f"{path} does not exist; give an exported file, or a checkpoint's directory")
    plain = EngineConfig()
    given = [
        field.name for field in fields(config) if field.name not in RUNNING and getattr(config, field.name) != getattr(plain, field.name)
    ]
    if given:
        raise ExportError(
            f"{path} is exported already, and {', '.join(given)} would be for exporting it: leave that out, or give its checkpoint"
        )


def _exported(path: Path, config: EngineConfig, progress: Progress | None) -> Path:
    """The checkpoint's file, from the cache or made now. What exports is imported for this alone."""
    if not path.is_dir() and find_gguf(path) is None:
        raise CheckpointError(
            f"{path}: is neither an exported file ({', '.join(EXPORTED)}) nor a checkpoint (a directory with config.json, or a .gguf file)"
        )
    from flatlm.generative.export_cache import cached_export
    from flatlm.utilities.exporter import ExportRequest, plan_export

    recipe = find_recipe(config.recipe) if isinstance(config.recipe, str) else config.recipe
    custom, modules = (None if file is None else Path(file) for file in (config.custom, config.custom_module_map))
    request = ExportRequest(
        path,
        path,
        recipe,
        None if config.prefill_lengths is None else tuple(config.prefill_lengths),
        config.kv_cache_len,
        reading=Reading(config.family, custom=custom, module_map=modules),
        kv_cache_dtype=config.kv_cache_dtype,
    )
    with open_checkpoint(path) as checkpoint:
        kind = plan_export(checkpoint, request).shape.facts.get("kind")
    if kind is not None:
        raise RuntimeFileError(f"{path} is of the kind {kind}, and this writes on with decoders: see flatlm generate -p, flatlm.AutoLoader")
    return cached_export(request, verify=config.verify, progress=progress)
