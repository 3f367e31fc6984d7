"""Opens an exported file for a task."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from flatlm.errors import RuntimeFileError
from flatlm.generative.file_tokenizer import file_tokenizer
from flatlm.generative.inspect import read_manifest
from flatlm.tasks.table import ENCODER, TaskRecord, find_task, fitting
from flatlm.utilities.tokenizer import Tokenizer


class TaskRunner(ABC):
    """A file that does a task: `predict` a text, as often as there are texts. Not for several threads at once.

    `manifest`: the file's own. Closing frees the model.
    """

    pairs: ClassVar[bool] = False
    """Whether it takes a second text."""

    def __init__(self, file: Path, task: TaskRecord, manifest: Mapping[str, Any], tokenizer: Tokenizer, *, threads: int | None) -> None:
        """Use `open_task`."""
        self.file, self.task, self.manifest, self.tokenizer = file, task, manifest, tokenizer

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
    file: Path | str, *, task: str | None = None, tokenizer: Path | str | Tokenizer | None = None, threads: int | None = None
) -> TaskRunner:
    """The runner of a task (None: what the file was exported for) on an exported file.

    `tokenizer`: its directory, or itself; a bundle has its own. Raises ConfigError for an unknown task, RuntimeFileError for one that the
    file cannot do, with those that it can, TokenizerError without a tokenizer.
    """
    file = Path(file)
    manifest = read_manifest(file)
    record = _task(file, manifest, task)
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = file_tokenizer(file, None if tokenizer is None else Path(tokenizer))
    runner: TaskRunner = record.runner_class(file, record, manifest, tokenizer, threads=threads)
    return runner


def _task(file: Path, manifest: Mapping[str, Any], asked: str | None) -> TaskRecord:
    kind = str(manifest.get("kind", "decoder"))
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
