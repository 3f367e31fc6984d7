"""Exports that are kept for the next time: a checkpoint that is run by its path is exported once.

`$XDG_CACHE_HOME/flatlm/exports/KEY.tflite`, with its manifest beside it; KEY digests all that decides what is in the file. The tokenizer
stays where it is, in the checkpoint.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from flatlm import __version__
from flatlm.authoring.code_digests import code_digests
from flatlm.errors import CheckpointError, ConfigError
from flatlm.generative.evaluation.locked_folder import lock
from flatlm.generative.memory import cache_directory
from flatlm.generative.prove import prover
from flatlm.progress import Progress
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.digests import digest_of, file_digest, weight_states
from flatlm.utilities.exporter import ExportRequest, export
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

MOST_BYTES_IN_ALL = 16 << 30
"""Where the exports take more, those that were not used for longest are removed. The one that is asked for is always kept."""
_WAIT_S = 0.2


def export_directory() -> Path:
    """Where exports are kept."""
    return cache_directory() / "exports"


def cached_export(request: ExportRequest, *, verify: bool = True, progress: Progress | None = None) -> Path:
    """The file that the request describes, exported now if it is not there; `request.output` says nothing.

    `verify`: prove it before it is kept, as `flatlm export` does; a file that was kept without is proved by nobody. Another process that
    exports the same is waited for. Raises what `export` raises, and OutputError where the cache cannot be written.
    """
    folder = export_directory()
    file = folder / f"{export_key(request, verify=verify)}.tflite"
    with _turn(file):
        if not file.is_file():
            request = replace(request, output=file)
            export(request, prove=prover(request, progress=progress) if verify else None, progress=progress)
            _forget(folder, file)
        os.utime(file)
    return file


def export_key(request: ExportRequest, *, verify: bool = True) -> str:
    """Names what would be written, by the checkpoint's contents and not by its path. Raises CheckpointError, ConfigError."""
    path = request.checkpoint
    with open_checkpoint(path, lora=request.lora) as checkpoint:
        weights = checkpoint.fingerprint()
    config = path / "config.json"
    try:
        facts: dict[str, object] = {
            "checkpoint": weights,  # which reads samples of the weights alone
            "files": [weight_states(found) for found in (path, request.lora) if found is not None],
            "config": file_digest(config) if config.is_file() else "",
            "tokenizer": Tokenizer.load(path).probe(),
            "calibration": "" if request.calibration is None else file_digest(request.calibration),
        }
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read: {error.strerror}") from error
    try:
        reading = {**request.reading.fingerprint(), "outside": code_digests(path, request.reading)}
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read: {error.strerror}; give a Python file that is there") from error
    facts |= {"reading": reading, "recipe": request.recipe.to_dict(), "prefill": _ascending(request.prefill_lengths)}
    facts |= {"cache": _ascending(request.kv_cache_len)}
    facts |= {
        "logits": request.prefill_logits,
        "dtype": str(request.kv_cache_dtype),
        "checked": request.verify_length,
        "verified": verify,
        "flatlm": __version__,
    }
    return digest_of(facts | {name: version(name) for name in ("torch", "litert-torch", "ai-edge-litert")})[:32]


def _ascending(lengths: int | Sequence[int] | None) -> object:
    """Lengths as the export takes them, in whatever order they were asked for."""
    if lengths is None or isinstance(lengths, int):
        return lengths
    found = sorted(set(lengths))
    return found[0] if len(found) == 1 else found


@contextmanager
def _turn(file: Path) -> Iterator[None]:
    """One process at a time makes a file; the others wait."""
    while (held := lock(file.parent, f"{file.stem}.lock", way_out="set XDG_CACHE_HOME to a folder that can be")) is None:
        time.sleep(_WAIT_S)
    with held:
        yield


def _forget(folder: Path, kept: Path) -> None:
    """Remove the exports that were not used for longest, until all take less than MOST_BYTES_IN_ALL. Who runs one keeps it open."""
    with suppress(OSError):
        states = [(file, file.stat()) for file in folder.glob("*.tflite") if not file.name.startswith(".")]
        room = MOST_BYTES_IN_ALL - kept.stat().st_size
        for file, state in sorted(states, key=lambda item: -item[1].st_mtime):
            room -= state.st_size if file != kept else 0
            if room < 0 and file != kept:
                for found in folder.glob(f"{file.stem}.*"):
                    if found.suffix != ".lock":  # another process may wait for it
                        found.unlink(missing_ok=True)
