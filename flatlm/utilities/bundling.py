"""What a checkpoint directory says about its bundle: tokenizer, start and stop tokens, chat template, sampling."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flatlm.convert.bundle import MODEL_OFFSET, BundleMetadata, TokenizerSource, finish_bundle, read_bundle, replace_manifest
from flatlm.utilities.tokenizer import Tokenizer


class BundleFinisher:
    """Turns a file with a model at `model_offset` into a `.litertlm` bundle. The tokenizer is read, and refused, before any work."""

    model_offset = MODEL_OFFSET

    def __init__(self, checkpoint: Path, cache_length: int) -> None:
        """Raises TokenizerError where the checkpoint has no tokenizer that a bundle can carry."""
        self._tokenizer = Tokenizer.load(checkpoint)
        self._cache_length = cache_length

    def __call__(self, path: Path, model_size: int, manifest: Mapping[str, Any]) -> None:
        tokenizer = self._tokenizer
        metadata = BundleMetadata(
            max_num_tokens=self._cache_length,
            stop_token_ids=tokenizer.eos_ids,
            start_token_id=tokenizer.bos_id,
            chat_template=tokenizer.chat_template,
            manifest=manifest,
        )
        finish_bundle(path, model_size=model_size, tokenizer=TokenizerSource(tokenizer.kind, tokenizer.data), metadata=metadata)

    def replace_manifest(self, path: Path, manifest: Mapping[str, Any]) -> None:
        replace_manifest(path, manifest)


def bundled_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that a `.litertlm` bundle carries, with its start and stop tokens. Raises RuntimeFileError, TokenizerError."""
    bundle = read_bundle(path)
    metadata = bundle.metadata
    return Tokenizer.from_bytes(
        bundle.tokenizer.kind,
        bundle.tokenizer.data,
        bos_id=metadata.start_token_id,
        eos_ids=metadata.stop_token_ids,
        chat_template=metadata.chat_template,
        source=path,
    )
