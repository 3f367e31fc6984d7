"""Names for contents: SHA-256, in hexadecimal."""

import hashlib
import json
from pathlib import Path


def digest_of(value: object) -> str:
    """Of plain data; keys in any order, and tuples as lists."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()


WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def weight_states(path: Path) -> list[tuple[str, int, int]]:
    """Name, bytes and time of change (ns) of a checkpoint's files of weights: what a fingerprint by samples may overlook."""
    files = sorted(file for file in path.iterdir() if file.suffix in WEIGHTS) if path.is_dir() else [path]
    return [(file.name, (found := file.stat()).st_size, found.st_mtime_ns) for file in files]


def file_digest(path: Path) -> str:
    """Of a file's content. OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
