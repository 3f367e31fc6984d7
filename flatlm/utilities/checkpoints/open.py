"""Opens a checkpoint in whatever form it is kept."""

from collections.abc import Mapping
from pathlib import Path

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.directory import Checkpoint
from flatlm.utilities.checkpoints.files import TensorRecord
from flatlm.utilities.checkpoints.gguf_file import GgufCheckpoint
from flatlm.utilities.checkpoints.gguf_paths import find_gguf
from flatlm.utilities.checkpoints.lora import LoraStore
from flatlm.utilities.checkpoints.quantized import open_quantized
from flatlm.utilities.checkpoints.store import TensorStore


def open_checkpoint(path: str | Path, *, lora: Path | None = None) -> TensorStore:
    """The store for a checkpoint's path, with the adapter of the directory `lora` merged into it. Raises CheckpointError."""
    file = find_gguf(Path(path))
    store: TensorStore = open_quantized(Checkpoint.open(path)) if file is None else GgufCheckpoint.open(file, named=path)
    return store if lora is None else _with_adapter(store, lora)


def peek_tensors(path: str | Path) -> Mapping[str, TensorRecord] | None:
    """The tensors of a checkpoint by name, for what no key of config.json says; None where there are no weights, only a configuration.

    None of weights that cannot be opened, too: who reads them says what is wrong.
    """
    try:
        with open_checkpoint(path) as checkpoint:
            return dict(checkpoint.tensors)
    except CheckpointError:
        return None


def _with_adapter(base: TensorStore, lora: Path) -> TensorStore:
    try:
        return LoraStore(base, lora)
    except BaseException:
        base.close()
        raise
