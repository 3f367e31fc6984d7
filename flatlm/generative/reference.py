"""What an exported file is compared with: the original checkpoint, run by transformers, or by the eager re-authored model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from flatlm.convert.quiet import quiet
from flatlm.errors import CheckpointError, ConfigError
from flatlm.layers.kv_cache import empty_caches
from flatlm.utilities.example import build_model


class Reference(Protocol):
    """A model in float32 that reads a text piece by piece."""

    name: str

    def reset(self) -> None:
        """Forget the text so far."""
        ...

    def feed(self, ids: Sequence[int]) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """Read on: the logits [n, V] after each of the n ids."""
        ...


class EagerReference:
    """The re-authored model itself, its weights as the checkpoint has them."""

    name = "eager"

    def __init__(self, checkpoint: Path, *, length: int) -> None:
        self._model = build_model(checkpoint, kv_cache_max_len=length)
        self.reset()

    def reset(self) -> None:
        self._caches = empty_caches(self._model.config, length=self._model.cache_length)
        self._position = 0

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> "np.ndarray[Any, np.dtype[np.float32]]":
        positions = torch.arange(self._position, self._position + len(ids), dtype=torch.int32)
        logits, self._caches = self._model(torch.tensor([list(ids)], dtype=torch.int32), positions, self._caches)
        self._position += len(ids)
        return logits[0].numpy()  # type: ignore[no-any-return]


class TransformersReference:
    """The class that the checkpoint was made for, from transformers, on the CPU."""

    name = "transformers"

    def __init__(self, checkpoint: Path) -> None:
        """Raises CheckpointError where transformers cannot load it. Code in the checkpoint is never run."""
        try:
            with quiet():
                from transformers import AutoModelForCausalLM

                model = AutoModelForCausalLM.from_pretrained(
                    checkpoint, dtype=torch.float32, trust_remote_code=False, local_files_only=True
                )
        except Exception as error:  # whatever it meets in a broken checkpoint
            raise CheckpointError(f"{checkpoint}: transformers cannot load it ({error}); try --against eager") from error
        self._model = model.eval()
        self.reset()

    def reset(self) -> None:
        self._cache: Any = None

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> "np.ndarray[Any, np.dtype[np.float32]]":
        out = self._model(torch.tensor([list(ids)]), past_key_values=self._cache, use_cache=True)
        self._cache = out.past_key_values
        return out.logits[0].float().numpy()  # type: ignore[no-any-return]


REFERENCES = ("transformers", "eager")


def open_reference(checkpoint: Path, *, length: int, against: str | None = None) -> Reference:
    """The reference called `against`; by default transformers where it is installed, else the eager model."""
    if against is None:
        from importlib.util import find_spec

        against = "transformers" if find_spec("transformers") else "eager"
    if against == "eager":
        return EagerReference(checkpoint, length=length)
    if against == "transformers":
        return TransformersReference(checkpoint)
    raise ConfigError(f"--against {against}: choose one of {', '.join(REFERENCES)}")
