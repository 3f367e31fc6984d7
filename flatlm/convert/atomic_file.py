"""Output files appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flatlm.errors import OutputError


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; flushed and renamed to it on success, removed on failure. An old file stays until then.

    The temporary name keeps the suffix, so that a format chosen by suffix is the same. Raises OutputError where it cannot be written.
    """
    directory = path.parent
    if not directory.is_dir():
        raise OutputError(f"{directory} is not a directory: create it, or give another output path")
    if path.is_dir():
        raise OutputError(f"{path} is a directory: give a file's name")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=f".partial{path.suffix}", dir=directory)
    except OSError as error:
        raise OutputError(f"{directory} cannot be written ({error.strerror}): choose another output path") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _flush(directory)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): free some space or choose another path") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
