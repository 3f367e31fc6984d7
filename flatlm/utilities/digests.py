"""Names for contents: SHA-256, in hexadecimal."""

import hashlib
import json
from pathlib import Path


def digest_of(value: object) -> str:
    """Of plain data; keys in any order, and tuples as lists."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Of a file's content. OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
