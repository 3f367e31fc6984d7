"""What is asked of lm-evaluation-harness, as data."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TaskRequest:
    """Tasks by name, or groups of them, and how they are asked."""

    names: tuple[str, ...]
    num_fewshot: int | None = None
    """Examples before each question; None: the task's own number."""
    limit: int | float | None = None
    """Questions of each task, or a part of them where below 1."""
    include_path: Path | None = None
    """A directory of one's own tasks."""
    apply_chat_template: bool = False
