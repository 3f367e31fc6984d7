"""The error of each layer for those files of a folder that were made from a checkpoint."""

from collections.abc import Callable
from pathlib import Path

from flatlm.errors import RuntimeFileError
from flatlm.generative.inspect import read_manifest
from flatlm.generative.layer_errors import layer_errors, text_ids
from flatlm.generative.model_file import read_model_file
from flatlm.generative.reporting.collect import SUFFIXES
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.documents import read_documents
from flatlm.utilities.results import save_result

DEFAULT_TEXT = Path(__file__).parents[2] / "assets" / "demo_text" / "held_out.json"


def measure_layers(
    folder: Path, checkpoint: Path, *, text: Path | None, tokens: int, progress: Callable[[str, int, int], None] | None = None
) -> list[Path]:
    """Measure and save beside each file; returns where. Files of other checkpoints, told by their manifests, are passed over.

    Raises RuntimeFileError where no file is the checkpoint's, and other FlatlmErrors.
    """
    with open_checkpoint(checkpoint) as store:
        fingerprint = store.fingerprint()
    files = sorted(file for suffix in SUFFIXES for file in folder.rglob(f"*{suffix}") if file.is_file())
    own = [file for file in files if _checkpoint_of(file) == fingerprint]
    if not own:
        raise RuntimeFileError(f"{folder} has no file that was exported from {checkpoint}: give the checkpoint of one, unchanged since")
    ids = text_ids(checkpoint, read_documents(text or DEFAULT_TEXT), tokens=tokens)
    written = []
    for done, file in enumerate(own, 1):
        room = read_model_file(file).cache_length
        written.append(save_result(file, "layers", layer_errors(file, checkpoint, ids[:room]).to_dict()))
        if progress is not None:
            progress("layers", done, len(own))
    return written


def _checkpoint_of(file: Path) -> object:
    """None for a file that cannot be read: the report tells why."""
    try:
        return read_manifest(file).get("checkpoint")
    except RuntimeFileError:
        return None
