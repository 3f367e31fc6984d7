"""What a named model class is for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelRecord:
    """A class of `flatlm.tasks.models`: its name, the families whose checkpoints it reads (none: any), and the task of its head.

    `crf`: a CRF stands behind the head.
    """

    name: str
    families: tuple[str, ...] = ()
    task: str | None = None
    crf: bool = False
