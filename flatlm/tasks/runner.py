"""Opens an exported file for a task."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from flatlm.errors import RuntimeFileError, TokenizerError
from flatlm.generative.file_tokenizer import file_tokenizer
from flatlm.generative.inspect import read_manifest
from flatlm.tasks.table import DECODER, ENCODER, ENCODER_DECODER, TaskRecord, find_task, fitting
from flatlm.utilities.tokenizing.tokenizer import Tokenizer


@dataclass(frozen=True)
class OpenedFile:
    """What a task's runner begins with. `output_tokenizer`: of what an encoder-decoder writes, where that is another than what it reads."""

    file: Path
    task: TaskRecord
    manifest: Mapping[str, Any]
    tokenizer: Tokenizer
    output_tokenizer: Tokenizer
    threads: int | None = None

    @property
    def kind(self) -> str:
        """Of the model in the file."""
        return str(self.manifest.get("kind", DECODER))


class TaskRunner(ABC):
    """A file that does a task: `predict` a text, as often as there are texts. Not for several threads at once.

    `manifest`: the file's own. Closing frees the model.
    """

    options: ClassVar[tuple[str, ...]] = ()
    """What `predict` takes beside the text."""

    def __init__(self, opened: "OpenedFile") -> None:
        """Use `open_task`."""
        self.file, self.task, self.manifest, self.tokenizer = opened.file, opened.task, opened.manifest, opened.tokenizer

    @abstractmethod
    def predict(self, text: str, **options: Any) -> Any:
        """What the task makes of a text: a record. Raises RuntimeFileError, TokenizerError."""

    @abstractmethod
    def close(self) -> None:
        """Frees the model."""

    def __call__(self, text: str, **options: Any) -> Any:
        return self.predict(text, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_task(
    file: Path | str,
    *,
    task: str | None = None,
    tokenizer: Path | str | Tokenizer | None = None,
    output_tokenizer: Path | str | None = None,
    threads: int | None = None,
) -> TaskRunner:
    """The runner of a task (None: what the file was exported for) on an exported file.

    `tokenizer`: its directory, or itself; a bundle has its own. `output_tokenizer`: that of what an encoder-decoder writes, where it is
    another. Raises ConfigError for an unknown task, RuntimeFileError for one that the file cannot do, with those that it can,
    TokenizerError without a tokenizer.
    """
    file = Path(file)
    manifest = read_manifest(file)
    record = _task(file, manifest, task)
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = file_tokenizer(file, None if tokenizer is None else Path(tokenizer))
    written = tokenizer if output_tokenizer is None else Tokenizer.load(output_tokenizer)
    opened = OpenedFile(file, record, manifest, tokenizer, written, threads)
    if output_tokenizer is not None and opened.kind != ENCODER_DECODER:
        raise TokenizerError(f"an output tokenizer is for models that read one text and write another; {file} is of the kind {opened.kind}")
    runner: TaskRunner = record.runner_class(opened)
    return runner


def _task(file: Path, manifest: Mapping[str, Any], asked: str | None) -> TaskRecord:
    kind = str(manifest.get("kind", DECODER))
    head = manifest.get("task") if kind == ENCODER else None
    possible = fitting(kind, head)
    if not possible:
        what = f"an encoder exported for {head}" if head is not None else f"of the kind {kind}"
        raise RuntimeFileError(f"{file} is {what}, which no task reads: export it again with --task {' or '.join(fitting(ENCODER))}")
    if asked is None:
        asked = str(manifest["task_asked"]) if manifest.get("task_asked") in possible else possible[0]
    record = find_task(asked)
    if record.name not in possible:
        what = f"an encoder with a head for {head}" if head is not None else f"of the kind {kind}"
        raise RuntimeFileError(f"{file} cannot do {record.name}: it is {what}; it can do {', '.join(possible)}")
    return record
