"""Small files in which Linux tells about itself. What is not there, or not for this user to read, is empty."""

from contextlib import suppress
from pathlib import Path

ROOT = Path("/")
"""Where `proc` and `sys` lie."""


def text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(errors="replace").strip()
    return ""


def number(path: Path) -> int | None:
    """None where it holds no whole number."""
    with suppress(ValueError):
        return int(text(path))
    return None
