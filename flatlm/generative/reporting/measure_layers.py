"""The error of each layer for those files of a folder that were made from a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flatlm.errors import FlatlmError, RuntimeFileError
from flatlm.generative.inspect import read_manifest
from flatlm.generative.layer_errors import layer_errors_on_text
from flatlm.generative.reporting.collect import SUFFIXES
from flatlm.generative.reporting.missing import WITH_ADAPTER, has_adapter
from flatlm.progress import Progress
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.digests import file_digest
from flatlm.utilities.documents import OWN_TEXT, read_documents
from flatlm.utilities.results import FILE_KEY, read_json_result, result_path, save_result


def measure_layers(folder: Path, checkpoint: Path, *, text: Path | None, tokens: int, progress: Progress | None = None) -> list[Path]:
    """Measure and save beside each file; returns where. Files of other checkpoints, told by their manifests, are passed over.

    Files with an adapter merged into them are left out: the checkpoint is not their reference. Where a file fails, the others are
    measured, and the reason is saved in the place of its figures, or with those from before; the report tells it. Raises
    RuntimeFileError where no file is the checkpoint's alone, the FlatlmError of the first file where each one failed, and others of the
    checkpoint and the text.
    """
    with open_checkpoint(checkpoint) as store:
        fingerprint = store.fingerprint()
    files = sorted(file for suffix in SUFFIXES for file in folder.rglob(f"*{suffix}") if file.is_file())
    manifests = {file: _manifest_of(file) for file in files}
    own = [file for file in files if manifests[file].get("checkpoint") == fingerprint]
    if not own:
        raise RuntimeFileError(f"{folder} has no file that was exported from {checkpoint}: give the checkpoint of one, unchanged since")
    plain = [file for file in own if not has_adapter(manifests[file])]
    if not plain:
        raise RuntimeFileError(f"{folder}: all files from {checkpoint} have an adapter merged into them: use {WITH_ADAPTER}")
    documents = read_documents(text or OWN_TEXT)
    written, failures = list[Path](), list[tuple[Path, FlatlmError]]()
    for done, file in enumerate(plain, 1):
        try:
            found = layer_errors_on_text(file, checkpoint, documents, tokens=tokens).to_dict()
        except FlatlmError as error:
            failures.append((file, error))
        else:
            written.append(save_result(file, "layers", {FILE_KEY: file_digest(file), **found}))
        if progress is not None:
            progress("layers", done, len(plain))
    if not written:
        raise failures[0][1]
    for file, failure in failures:
        _save_failure(file, failure)
    return written


def _save_failure(file: Path, error: FlatlmError) -> None:
    """With the figures from before, where they are of the same content or do not tell."""
    digest = file_digest(file)
    try:
        earlier = read_json_result(result_path(file, "layers"))
    except RuntimeFileError:
        earlier = {}
    if not isinstance(earlier, dict) or earlier.get(FILE_KEY, digest) != digest:
        earlier = {}
    save_result(file, "layers", ({} if earlier else {FILE_KEY: digest}) | earlier | {"problem": str(error)})


def _manifest_of(file: Path) -> Mapping[str, Any]:
    """Empty for a file that cannot be read: the report tells why."""
    try:
        return read_manifest(file)
    except RuntimeFileError:
        return {}
