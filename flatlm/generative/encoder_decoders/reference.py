"""What an exported encoder with a decoder is compared with: the checkpoint, run by transformers, or by the eager re-authored model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from flatlm.convert.quiet import quiet
from flatlm.errors import CheckpointError, FlatlmError
from flatlm.generative.pretrained import load_pretrained
from flatlm.generative.reference import Reference, reference_name
from flatlm.layers.encoder_decoder import EncoderDecoder
from flatlm.utilities.example import build_model
from flatlm.utilities.reading import AS_IT_SAYS, Reading


class ReadingReference(Reference, Protocol):
    """A model in float32 that reads a text as a whole; then it is a `Reference` that writes one about it."""

    def read(self, ids: Sequence[int]) -> None:
        """Read a text, and begin to write anew."""
        ...


class EagerReference:
    """The re-authored model itself, its weights as the checkpoint has them."""

    name = "eager"

    def __init__(self, checkpoint: Path, *, length: int, reading: Reading = AS_IT_SAYS) -> None:
        self._model: EncoderDecoder = build_model(checkpoint, kv_cache_max_len=length, reading=reading)

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> None:
        tokens = torch.tensor([list(ids)], dtype=torch.int32)
        self._mask = torch.zeros(1, self._model.lengths.encoder)
        self._mask[0, : len(ids)] = 1
        self._cross = self._model.encode(tokens, torch.ones(1, len(ids)))
        self.reset()

    def reset(self) -> None:
        self._caches, self._position = self._model.empty_caches(), 0

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        positions = torch.arange(self._position, self._position + len(ids), dtype=torch.int32)
        tokens = torch.tensor([list(ids)], dtype=torch.int32)
        logits, self._caches = self._model.decode(tokens, positions, self._mask, self._cross, self._caches)
        self._position += len(ids)
        found: NDArray[np.float32] = logits[0].numpy()
        return found


class TransformersReference:
    """The class that the checkpoint was made for, from transformers, on the CPU."""

    name = "transformers"

    def __init__(self, checkpoint: Path) -> None:
        """Raises CheckpointError where transformers cannot load it, or fills it up. Code in the checkpoint is never run."""
        try:
            with quiet():
                from transformers import AutoModelForSeq2SeqLM

                model = load_pretrained(AutoModelForSeq2SeqLM, checkpoint)
        except FlatlmError:
            raise
        except Exception as error:  # whatever it meets in a broken checkpoint
            raise CheckpointError(f"{checkpoint}: transformers cannot load it ({error}); try --against eager") from error
        self._model = model.eval()

    @torch.inference_mode()
    def read(self, ids: Sequence[int]) -> None:
        self._encoded: Any = self._model.get_encoder()(input_ids=torch.tensor([list(ids)]), attention_mask=torch.ones(1, len(ids)).long())
        self._mask = torch.ones(1, len(ids)).long()
        self.reset()

    def reset(self) -> None:
        self._cache: Any = None

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        out = self._model(
            encoder_outputs=self._encoded,
            attention_mask=self._mask,
            decoder_input_ids=torch.tensor([list(ids)]),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = out.past_key_values
        found: NDArray[np.float32] = out.logits[0].float().numpy()
        return found


def open_reference(checkpoint: Path, *, length: int, against: str | None = None, reading: Reading = AS_IT_SAYS) -> ReadingReference:
    """The reference that `generative.reference.reference_name` chooses, for texts of `length` tokens."""
    if reference_name(checkpoint, length=length, against=against, reading=reading) == "eager":
        return EagerReference(checkpoint, length=length, reading=reading)
    return TransformersReference(checkpoint)
