"""What a checkpoint directory says about its bundle: tokenizer, start and stop tokens, chat template, sampling."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flatlm.convert.bundle import MODEL_OFFSET, TokenizerSource, finish_bundle, read_bundle, replace_manifest
from flatlm.convert.bundle_metadata import BundleMetadata, BundleSampler
from flatlm.convert.bundle_template import for_litert_lm
from flatlm.utilities.tokenizing.settings import read_json
from flatlm.utilities.tokenizing.tokenizer import Tokenizer, TokenizerSettings


class BundleFinisher:
    """Turns a file with a model at `model_offset` into a `.litertlm` bundle. The tokenizer is read, and refused, before any work."""

    model_offset = MODEL_OFFSET

    def __init__(self, checkpoint: Path, cache_length: int) -> None:
        """Raises TokenizerError where the checkpoint has no tokenizer that a bundle can carry."""
        tokenizer = Tokenizer.load(checkpoint)
        special = {name: token.content for name, token in tokenizer.settings.special_tokens.items()}
        template = tokenizer.chat_template
        self._tokenizer = TokenizerSource(tokenizer.kind, tokenizer.to_bytes())
        self._metadata = BundleMetadata(
            max_num_tokens=cache_length,
            stop_token_ids=tokenizer.eos_ids,
            start_token_id=_start_token(tokenizer),
            chat_template=None if template is None else for_litert_lm(template, special),
            sampler=BundleSampler.from_generation_config(read_json(checkpoint / "generation_config.json")),
        )

    def __call__(self, path: Path, model_size: int, manifest: Mapping[str, Any]) -> None:
        finish_bundle(path, model_size=model_size, tokenizer=self._tokenizer, metadata=replace(self._metadata, manifest=manifest))

    def replace_manifest(self, path: Path, manifest: Mapping[str, Any]) -> None:
        """Put the manifest with what was measured in place of the first one."""
        replace_manifest(path, manifest)


def _start_token(tokenizer: Tokenizer) -> int | None:
    """BOS, for a model that continues plain text, where its tokenizer begins a text with it. Chat templates write it themselves."""
    if tokenizer.chat_template is not None or tokenizer.bos_id is None:
        return None
    return tokenizer.bos_id if tokenizer.encode("a")[:1] == [tokenizer.bos_id] else None


def bundled_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that a `.litertlm` bundle carries, with its start and stop tokens and its chat template.

    A SentencePiece model's own file does not say that BOS comes first: there the bundle's start token does. Raises RuntimeFileError,
    TokenizerError.
    """
    bundle = read_bundle(path)
    metadata = bundle.metadata
    settings = TokenizerSettings(
        add_bos=metadata.start_token_id is not None,
        bos_id=metadata.start_token_id,
        eos_ids=tuple(token for token in metadata.stop_token_ids if token >= 0),
        chat_template=metadata.chat_template,  # which sets its special tokens itself
    )
    return Tokenizer.from_bytes(bundle.tokenizer.kind, bundle.tokenizer.data, settings=settings, source=path)
