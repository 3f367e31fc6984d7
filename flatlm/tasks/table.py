"""The tasks: a lazy table of records. A task is what is done with an exported file; which model is in the file is the file's own affair."""

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flatlm.errors import ConfigError

DECODER, INFILLING, ENCODER, ENCODER_DECODER = "decoder", "infilling", "encoder", "encoder-decoder"
"""The kinds of models, as files' manifests name them (a decoder's names none)."""
WRITERS = (DECODER, INFILLING, ENCODER_DECODER)


@dataclass(frozen=True)
class TaskRecord:
    """`kinds`: of models that can do it. `heads`: those that an encoder may have for it. `runner`: the class, `module:name`."""

    name: str
    kinds: tuple[str, ...]
    runner: str
    gives: str
    heads: tuple[str, ...] = ()

    @property
    def runner_class(self) -> Any:
        """The class; its module is imported when it is asked for."""
        return load(self.runner)


def load(name: str) -> Any:
    """What `module:name` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


_WRITE, _READ = "flatlm.tasks.writing:WritingTask", "flatlm.tasks"
TASKS: Mapping[str, TaskRecord] = {
    record.name: record
    for record in (
        TaskRecord("lm", WRITERS, _WRITE, "the text that follows"),
        TaskRecord("seq2seq", WRITERS, _WRITE, "a text made of another"),
        TaskRecord("title-generation", WRITERS, _WRITE, "a text's title"),
        TaskRecord("poetry", WRITERS, _WRITE, "a poem"),
        TaskRecord("masklm", (ENCODER,), f"{_READ}.masked:MaskTask", "what may stand in the place of each mask", ("masklm",)),
        TaskRecord("embedding", (ENCODER,), f"{_READ}.embedding:EmbeddingTask", "a vector for a text", ("embedding", "features")),
        TaskRecord("classification", (ENCODER,), f"{_READ}.classifying:ClassificationTask", "a text's label", ("classification",)),
        TaskRecord("semantic-matching", (ENCODER,), f"{_READ}.classifying:MatchingTask", "whether two texts match", ("classification",)),
        TaskRecord("sequence-labeling", (ENCODER,), f"{_READ}.labeling:LabelingTask", "a label for each token", ("token-classification",)),
        TaskRecord("ner", (ENCODER,), f"{_READ}.labeling:LabelingTask", "the names in a text", ("token-classification",)),
    )
}
ALIASES: Mapping[str, str] = {"sequence-labeling-crf": "sequence-labeling", "ner-crf": "ner"}
"""Other names. Whether there is a CRF is the checkpoint's affair, not the task's."""


def find_task(name: str) -> TaskRecord:
    """The record of a task. Raises ConfigError, with the nearest name, for an unknown one."""
    name = ALIASES.get(name, name)
    if name in TASKS:
        return TASKS[name]
    close = difflib.get_close_matches(name, TASKS, 1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(TASKS)}"
    raise ConfigError(f"there is no task {name!r}: {hint}")


def fitting(kind: str, head: str | None = None) -> tuple[str, ...]:
    """The tasks that models of a kind can do; of an encoder whose head is settled, those of its head."""
    return tuple(task.name for task in TASKS.values() if kind in task.kinds and (head is None or head in task.heads))
