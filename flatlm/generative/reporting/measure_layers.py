"""The error of each layer for those files of a folder that were made from a checkpoint."""

from pathlib import Path

from flatlm.errors import RuntimeFileError
from flatlm.generative.inspect import read_manifest
from flatlm.generative.layer_errors import layer_errors_on_text
from flatlm.generative.reporting.collect import SUFFIXES
from flatlm.progress import Progress
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.documents import OWN_TEXT, read_documents
from flatlm.utilities.results import save_result


def measure_layers(folder: Path, checkpoint: Path, *, text: Path | None, tokens: int, progress: Progress | None = None) -> list[Path]:
    """Measure and save beside each file; returns where. Files of other checkpoints, told by their manifests, are passed over.

    Raises RuntimeFileError where no file is the checkpoint's, and other FlatlmErrors.
    """
    with open_checkpoint(checkpoint) as store:
        fingerprint = store.fingerprint()
    files = sorted(file for suffix in SUFFIXES for file in folder.rglob(f"*{suffix}") if file.is_file())
    own = [file for file in files if _checkpoint_of(file) == fingerprint]
    if not own:
        raise RuntimeFileError(f"{folder} has no file that was exported from {checkpoint}: give the checkpoint of one, unchanged since")
    documents = read_documents(text or OWN_TEXT)
    written = []
    for done, file in enumerate(own, 1):
        written.append(save_result(file, "layers", layer_errors_on_text(file, checkpoint, documents, tokens=tokens).to_dict()))
        if progress is not None:
            progress("layers", done, len(own))
    return written


def _checkpoint_of(file: Path) -> object:
    """None for a file that cannot be read: the report tells why."""
    try:
        return read_manifest(file).get("checkpoint")
    except RuntimeFileError:
        return None
