"""What a file that fills blanks is compared with: the eager re-authored model, its weights as the checkpoint has them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flatlm.layers.infilling import Places, context_places, span_places
from flatlm.layers.kv_cache import empty_caches
from flatlm.utilities.example import build_model
from flatlm.utilities.reading import AS_IT_SAYS, Reading

Array = np.ndarray[Any, np.dtype[np.float32]]


class InfillingReference:
    """One text of context and spans, read piece by piece in float32, for texts of at most `length` tokens."""

    name = "eager"

    def __init__(self, checkpoint: Path, *, length: int, lora: Path | None = None, reading: Reading = AS_IT_SAYS) -> None:
        self._model = build_model(checkpoint, kv_cache_max_len=length, lora=lora, reading=reading)
        self.vocab_size: int = self._model.config.vocab_size

    def read_context(self, ids: Sequence[int]) -> Array:
        """Begins a new text: the logits [n, V] after each token of its context."""
        self._caches, self._position, self._context = empty_caches(self._model.config, self._model.geometry), 0, len(ids)
        return self._read(ids, context_places(len(ids)))

    def begin_span(self, mask: int) -> None:
        """What is read from here on is for the blank whose mask is at this place of the context."""
        self._mask, self._begin = mask, self._position

    def feed(self, ids: Sequence[int]) -> Array:
        """Reads on in the span: the logits [n, V] after each of the n ids."""
        first = self._position - self._begin + 1
        return self._read(ids, span_places(self._context, self._mask, range(first, first + len(ids))))

    @torch.inference_mode()
    def _read(self, ids: Sequence[int], places: Places) -> Array:
        positions = torch.arange(self._position, self._position + len(ids), dtype=torch.int32)
        logits, self._caches = self._model(torch.tensor([list(ids)], dtype=torch.int32), positions, self._caches, places)
        self._position += len(ids)
        return logits[0].numpy()  # type: ignore[no-any-return]
