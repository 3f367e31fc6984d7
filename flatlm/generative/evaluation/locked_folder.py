"""A folder that one process at a time works in: what it keeps for later runs is not written by two."""

import fcntl
from pathlib import Path
from typing import IO

from flatlm.errors import OutputError


def lock(folder: Path, name: str, *, way_out: str) -> IO[bytes] | None:
    """The file of that name in the folder, made where it is missing, open to append and read, and locked until it is closed.

    None where another process has it. Raises OutputError, with the way out, where the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / name).open("a+b")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written ({error.strerror}): {way_out}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
