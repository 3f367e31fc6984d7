"""What is to be run: an exported file, or a checkpoint, which is exported into a cache first. With the tokenizer that goes with it."""

from dataclasses import dataclass, fields
from pathlib import Path

from flatlm.errors import CheckpointError, ExportError, RuntimeFileError
from flatlm.generative.engine_config import RUNNING, EngineConfig
from flatlm.generative.export_process import exported, exported_apart
from flatlm.generative.file_tokenizer import file_tokenizer
from flatlm.progress import Progress
from flatlm.utilities.checkpoints.gguf_paths import find_gguf
from flatlm.utilities.tokenizing.tokenizer import Tokenizer

EXPORTED = (".tflite", ".litertlm")


@dataclass(frozen=True)
class Source:
    """A file that can be run, and its tokenizer.

    `tokenizer_source`: where the tokenizer is read from, for `file_tokenizer` in another process; None: the bundle's own.
    """

    file: Path
    tokenizer: Tokenizer
    tokenizer_source: Path | None


def is_exported(path: Path) -> bool:
    """Whether the path is that of an exported file, by its name."""
    return path.suffix in EXPORTED


def open_source(
    source: Path, config: EngineConfig, *, tokenizer: Path | None = None, progress: Progress | None = None, apart: bool = False
) -> Source:
    """The exported file, or the checkpoint's (a directory, or a `.gguf` file), exported and proved now if it was not before.

    `tokenizer`: a directory with one, for a `.tflite` file, which has none of its own. `apart`: export in a process of its own, so that
    this one stays as small as with a file. Raises a FlatlmError for bad input, and VerificationFailed where the exported file is too far
    from the checkpoint.
    """
    if is_exported(source):
        _require_exported(source, config)
        return Source(source, file_tokenizer(source, tokenizer), tokenizer)
    if not source.is_dir() and find_gguf(source) is None:
        raise CheckpointError(
            f"{source}: is neither an exported file ({', '.join(EXPORTED)}) nor a checkpoint "
            "(a directory with config.json, or a .gguf file)"
        )
    file = (exported_apart if apart else exported)(source, config, progress)
    place = source if tokenizer is None else tokenizer
    return Source(file, Tokenizer.load(place), place)


def _require_exported(path: Path, config: EngineConfig) -> None:
    """That the file is there, and that nothing is asked for which only an export could give."""
    if not path.is_file():
        raise RuntimeFileError(f"{path} does not exist; give an exported file, or a checkpoint's directory")
    plain = EngineConfig()
    given = [
        field.name for field in fields(config) if field.name not in RUNNING and getattr(config, field.name) != getattr(plain, field.name)
    ]
    if given:
        raise ExportError(
            f"{path} is exported already, and {', '.join(given)} would be for exporting it: leave that out, or give its checkpoint"
        )
