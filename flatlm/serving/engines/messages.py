"""What the server and an engine's process say to one another."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flatlm.generative.generation_config import GenerationConfig

TEXT = "text"
ENCODER = "encoder"


@dataclass(frozen=True)
class EngineSpec:
    """What an engine's process is to open."""

    file: Path
    kind: Literal["text", "encoder"] = "text"
    tokenizer: Path | None = None
    """A directory or a file; None: the bundle's own."""
    threads: int | None = None
    """None: one for each core."""
    slots: int = 4
    """Texts at once."""
    share_beginnings: bool = True
    """Read what texts have in common once."""
    draft: Path | None = None
    """A smaller file that writes ahead."""


@dataclass(frozen=True)
class Opened:
    """The file is loaded."""

    pid: int
    facts: Mapping[str, Any]
    """Of a decoder: context, vocab_size."""


@dataclass(frozen=True)
class Failed:
    """The file cannot be loaded."""

    message: str


@dataclass(frozen=True)
class WriteRequest:
    """A text to write: the answers are `generate.Piece`s."""

    ids: tuple[int, ...]
    config: GenerationConfig


@dataclass(frozen=True)
class ScoreRequest:
    """A text whose likelihood is asked: the answers are tuples of `TokenLogprob`s, in all one for each of its tokens but the first."""

    ids: tuple[int, ...]
    top: int
    """So many of the most probable tokens at each place."""


@dataclass(frozen=True)
class Job:
    """A request on its way."""

    id: int
    request: Any
    seconds: float | None
    """What is left of its time."""


@dataclass(frozen=True)
class Cancel:
    """Nobody waits for this job any more."""

    id: int


@dataclass(frozen=True)
class Failure:
    """Why a job has no answer, or no more of it."""

    kind: Literal["input", "deadline", "fault"]
    message: str


@dataclass(frozen=True)
class Update:
    """What a job's next items are."""

    job: int
    items: tuple[Any, ...] = ()
    done: bool = False
    failure: Failure | None = None
    stats: Any = field(default=None)
    """At a text's end, its `session.TurnStats`."""
