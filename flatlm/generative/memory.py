"""What a loaded model occupies, and where: packed weights, a bundle's model as a file of its own, and the peak.

XNNPACK repacks every weight for its kernels when a model is loaded, once for each signature, unless it has a weight
cache to put the packed ones in: of a 1.1 GB int8 model, 3.0 GB resident without, 1.3 GB with. The cache may be memory
(1.6 s to load that model, nothing left behind) or a file that the next run maps (0.04 s, at the price of the disk).
"""

import errno
import hashlib
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO

from flatlm.errors import RuntimeFileError

_IN_MEMORY = ":memory"
"""XNNPACK's name for a cache in an anonymous file in memory; where the system has none it goes without."""
_NO_CACHE = ""
_KEPT_FILES = 4
_SUFFIX = ".packed"
_PART = ".packed-part"
_ABANDONED_S = 24 * 3600.0
_CHUNK = 16 << 20


def cache_directory() -> Path:
    """Where FlatLM may keep what it can make again: `$XDG_CACHE_HOME/flatlm`, else `~/.cache/flatlm`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "flatlm"


@contextmanager
def packed_weights(model: Path, where: bool | Path) -> Iterator[str]:
    """The weight cache's path for the runtime, while it loads `model`: True for one in memory, a directory for one that stays.

    XNNPACK does not notice that a cache file was made for another model, so a file's name tells which state of which
    model it belongs to. It is written under another name and renamed when loading has succeeded: two processes never
    write one file, and a killed one leaves none that looks whole. What cannot be written to, or has no room (XNNPACK
    aborts the process when the disk fills), is passed over for memory.
    """
    if not isinstance(where, Path):
        yield _IN_MEMORY if where else _NO_CACHE
        return
    owner = _digest(str(model.resolve()))
    entry = where / f"{owner}-{_digest(*_state(model))}{_SUFFIX}"
    if _touched(entry):
        yield str(entry)
        return
    made = _reserve(where, model.stat().st_size)
    if made is None:
        yield _IN_MEMORY
        return
    try:
        yield str(made)
        with suppress(OSError):
            if made.stat().st_size:
                made.replace(entry)
                _forget(where, owner, entry)
    finally:
        made.unlink(missing_ok=True)


def _state(model: Path) -> tuple[str, ...]:
    """What changes whenever the model, the runtime or the machine does. (ctime: nobody can set it back.)"""
    stat = model.stat()
    numbers = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return (*map(str, numbers), version("ai-edge-litert"), platform.machine(), platform.node())


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _touched(entry: Path) -> bool:
    """Is it there? Marked as used now, if so."""
    try:
        os.utime(entry)
    except OSError:
        return False
    return True


def _reserve(directory: Path, size: int) -> Path | None:
    """A new empty file in the directory, where there is room for one of about `size` bytes."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(directory).free < 2 * size:
            return None
        handle, name = tempfile.mkstemp(dir=directory, suffix=_PART)
    except OSError:
        return None
    os.close(handle)
    return Path(name)


def _forget(directory: Path, owner: str, kept: Path) -> None:
    """Remove the same model's older files, and the longest unused of the others. (A process that maps one keeps its bytes.)"""
    files = sorted(directory.glob(f"*{_SUFFIX}"), key=lambda file: file.stat().st_mtime, reverse=True)
    others = [file for file in files if file != kept and not file.name.startswith(owner)]
    abandoned = {file for file in directory.glob(f"*{_PART}") if time.time() - file.stat().st_mtime > _ABANDONED_S}
    for file in ({*files} - {kept, *others[: _KEPT_FILES - 1]}) | abandoned:
        file.unlink(missing_ok=True)


@contextmanager
def section_as_file(path: Path, offset: int, size: int) -> Iterator[Path]:
    """A path to the bytes [offset, offset + size) of a file, for a runtime that maps whole files; `path` itself for offset 0.

    LiteRT's Python also takes `bytes`, but they stay in memory as a copy that the system cannot drop. So a bundle's model
    is copied to a file without a name, which lives as long as it is mapped.
    """
    if offset == 0:
        yield path
        return
    directories = (cache_directory(), Path(tempfile.gettempdir()))
    for directory in directories:
        with suppress(OSError):
            copy = _copy(path, offset, size, directory)
            break
    else:
        raise RuntimeFileError(
            f"{path}: {size} bytes of it must be copied to run it, and neither {' nor '.join(map(str, directories))} has room"
        )
    with copy:
        yield Path(f"/dev/fd/{copy.fileno()}")


def _copy(path: Path, offset: int, size: int, directory: Path) -> IO[bytes]:
    directory.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(directory).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    copy = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - the caller closes it
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while size > 0 and (chunk := file.read(min(size, _CHUNK))):
                copy.write(chunk)
                size -= len(chunk)
        copy.flush()
    except BaseException:
        copy.close()
        raise
    return copy


def peak_resident_bytes() -> int:
    """The most that this process has had in memory at once, files that it maps included.

    Not `ru_maxrss` where it can be helped: Linux carries that over from the process that started this one.
    """
    with suppress(OSError), Path("/proc/self/status").open() as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that a program may still take, of the machine or the container, whichever has less; None where the system does not tell.

    `root`: where `proc` and `sys` lie.
    """
    found = []
    with suppress(OSError, ValueError, IndexError):
        (line,) = (line for line in (root / "proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
        found.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError, KeyError):
        group = root / "sys/fs/cgroup"
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        found.append(max(0, limit - used + int(counts["inactive_file"])))  # files that were read long ago make room
    return min(found, default=None)
