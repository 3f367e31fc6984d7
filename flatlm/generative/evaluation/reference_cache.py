"""What a reference said of a text, kept on disk: the next evaluation of another file on the same text need not run it again.

A folder for each reference and text, by a digest of both: `records`, a `Distributions` record for each token in the text's order, appended
as they are computed; `greedy.json`, its greedy answers. An interrupted one goes on where it was.
"""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from flatlm.convert.atomic_file import atomic_output
from flatlm.errors import OutputError
from flatlm.generative.evaluation.distributions import Distributions, record_type
from flatlm.generative.evaluation.locked_folder import lock
from flatlm.generative.memory import cache_directory

TOP = 256
"""Of each distribution, so many tokens are kept: two kilobytes."""
MOST_BYTES = 1 << 30
"""Of one text: of a longer one, fewer tokens of each distribution are kept."""
MOST_BYTES_IN_ALL = 4 << 30
LEAST_TOP = 8


def top_that_fits(tokens: int, vocab_size: int, *, top: int = TOP) -> int:
    """How many of each distribution are kept, for so many tokens of text."""
    overhead = record_type(1).itemsize - 8
    return min(vocab_size, top, max(LEAST_TOP, (MOST_BYTES // max(tokens, 1) - overhead) // 8))


def reference_directory() -> Path:
    """Where references are kept unless the user says otherwise."""
    return cache_directory() / "references"


class ReferenceCache:
    """One reference's distributions on one text. Another process that opens the same one meanwhile neither reads nor writes it."""

    def __init__(self, folder: Path, top: int, lock: IO[bytes], records: IO[bytes]) -> None:
        """Use `ReferenceCache.open`."""
        self.folder, self.top = folder, top
        self._lock, self._records, self._type = lock, records, record_type(top)
        whole = os.fstat(records.fileno()).st_size // self._type.itemsize
        records.truncate(whole * self._type.itemsize)
        self._count = whole

    @classmethod
    def open(cls, directory: Path, key: str, top: int) -> Self | None:
        """None where another process has it open. Raises OutputError where the directory cannot be written."""
        folder = directory / f"{key}-{top}"
        held = lock(folder, "lock", way_out="choose another --reference-cache, or --reference-top 0")
        if held is None:
            return None
        _forget(directory, folder)
        os.utime(folder)
        return cls(folder, top, held, (folder / "records").open("a+b"))

    def read(self, first: int, count: int) -> Distributions | None:
        """Those of tokens [first, first + count) of the text; None where not all of them are known."""
        if first + count > self._count:
            return None
        self._records.flush()
        data = os.pread(self._records.fileno(), count * self._type.itemsize, first * self._type.itemsize)
        return Distributions(np.frombuffer(data, self._type))

    def append(self, first: int, found: Distributions) -> None:
        """Keep what was computed, where it goes on from what is known. A full disk is not an error: the rest is then not kept."""
        known = self._count - first
        if not 0 <= known < len(found.records):
            return
        with suppress(OSError):
            self._records.write(found.records[known:].tobytes())
            self._records.flush()
            self._count = first + len(found.records)

    def greedy(self) -> dict[str, list[int]]:
        """The reference's greedy answers, by a prompt's key."""
        with suppress(OSError, ValueError):
            found: dict[str, list[int]] = json.loads((self.folder / "greedy.json").read_text("utf-8"))
            return found
        return {}

    def keep_greedy(self, answers: dict[str, list[int]]) -> None:
        self._write("greedy.json", answers)

    def missed(self) -> float | None:
        """The mean KL, in nats, that keeping only a part lost of the file for which the reference was run; None where that is not known."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            return float(json.loads((self.folder / "missed.json").read_text("utf-8"))["mean_kl"])
        return None

    def keep_missed(self, mean_kl: float, file: str) -> None:
        self._write("missed.json", {"mean_kl": mean_kl, "file": file})

    def close(self) -> None:
        with suppress(OSError):  # of a full disk, for what was not written yet
            self._records.close()
        self._lock.close()

    def _write(self, name: str, value: Any) -> None:
        with suppress(OutputError), atomic_output(self.folder / name) as temporary:
            temporary.write_text(json.dumps(value), "utf-8")


def _forget(directory: Path, kept: Path) -> None:
    """Remove the longest unused, until all together are within bounds."""
    folders = [folder for folder in directory.iterdir() if folder.is_dir() and folder != kept and (folder / "lock").exists()]
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in folders}
    total = sum(sizes.values())
    for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime):
        if total <= MOST_BYTES_IN_ALL - MOST_BYTES:
            return
        shutil.rmtree(folder, ignore_errors=True)
        total -= sizes[folder]
