"""What an encoder's file is compared with: the checkpoint in transformers' own class, or in the eager re-authored model."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from flatlm.convert.quiet import quiet
from flatlm.errors import CheckpointError, ConfigError, FlatlmError
from flatlm.generative.encoders.runner import Outputs
from flatlm.generative.pretrained import load_pretrained
from flatlm.generative.reference import REFERENCES
from flatlm.layers.encoder_config import EmbeddingHead, EncoderConfig, HiddenStates, Pooling
from flatlm.utilities.checkpoints.quantized import is_quantized
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.encoder_tasks import (
    CLASSIFICATION,
    EMBEDDING,
    FEATURES,
    MASKED_LM,
    QUESTION_ANSWERING,
    REPLACED_TOKENS,
    TOKEN_CLASSIFICATION,
)
from flatlm.utilities.configs.registry import build_config
from flatlm.utilities.example import build_model
from flatlm.utilities.reading import Reading

_CLASSES = {
    FEATURES: "AutoModel",
    EMBEDDING: "AutoModel",
    MASKED_LM: "AutoModelForMaskedLM",
    CLASSIFICATION: "AutoModelForSequenceClassification",
    TOKEN_CLASSIFICATION: "AutoModelForTokenClassification",
    QUESTION_ANSWERING: "AutoModelForQuestionAnswering",
    REPLACED_TOKENS: "AutoModelForPreTraining",
}
"""transformers' class for each task."""


class EncoderReference(Protocol):
    """A model in float32 that reads one text."""

    name: str

    def run(self, ids: Sequence[int], token_types: Sequence[int]) -> Outputs:
        """What `EncoderRunner.run` gives, by the same names."""
        ...


class EagerEncoder:
    """The re-authored model itself, its weights as the checkpoint has them."""

    name = "eager"

    def __init__(self, checkpoint: Path, *, lora: Path | None, reading: Reading) -> None:
        self._model = build_model(checkpoint, lora=lora, reading=reading)

    @torch.inference_mode()
    def run(self, ids: Sequence[int], token_types: Sequence[int]) -> Outputs:
        tokens, types = (torch.tensor([list(values)], dtype=torch.int32) for values in (ids, token_types))
        return {name: values[0].numpy() for name, values in self._model(tokens, None, types).items()}


class TransformersEncoder:
    """The class that the checkpoint was made for, from transformers, on the CPU; texts are pooled here, where the task is embedding."""

    name = "transformers"

    def __init__(self, checkpoint: Path, config: EncoderConfig) -> None:
        """Raises CheckpointError where transformers cannot load it, or fills it up. Code in the checkpoint is never run."""
        try:
            with quiet():
                import transformers

                pooled = isinstance(config.head, HiddenStates) and config.head.pooler is not None
                model = load_pretrained(getattr(transformers, _CLASSES[config.task]), checkpoint, unused=None if pooled else "pooler")
        except FlatlmError:
            raise
        except Exception as error:  # whatever it meets in a broken checkpoint
            raise CheckpointError(f"{checkpoint}: transformers cannot load it ({error}); try --against eager") from error
        self._model, self._config = model.eval(), config

    @torch.inference_mode()
    def run(self, ids: Sequence[int], token_types: Sequence[int]) -> Outputs:
        inputs = {"input_ids": torch.tensor([list(ids)])}
        if self._config.token_types:
            inputs["token_type_ids"] = torch.tensor([list(token_types)])
        out = self._model(**inputs)
        match self._config.head:
            case EmbeddingHead() as head:
                return {"embedding": _pooled(out.last_hidden_state[0].numpy(), head)}
            case HiddenStates(None):
                return {"hidden_states": out.last_hidden_state[0].numpy()}
            case HiddenStates():
                return {"hidden_states": out.last_hidden_state[0].numpy(), "pooled": out.pooler_output[0].numpy()}
        if self._config.task == QUESTION_ANSWERING:
            return {"logits": torch.stack([out.start_logits[0], out.end_logits[0]], -1).numpy()}
        logits = out.logits[0].numpy()
        return {"logits": logits[:, None] if self._config.task == REPLACED_TOKENS else logits}


def open_encoder_reference(checkpoint: Path, *, lora: Path | None, reading: Reading, against: str | None = None) -> EncoderReference:
    """`against`; by default transformers, where it is installed, has the class, and can read the checkpoint's form, else the eager model.

    Raises ConfigError where what was asked for cannot be had.
    """
    if against not in (None, *REFERENCES):
        raise ConfigError(f"--against {against}: choose one of {', '.join(REFERENCES)}")
    if against == "transformers" and find_spec("transformers") is None:
        raise ConfigError("--against transformers needs transformers: install it, or choose --against eager")
    if against == "transformers" and lora is not None:
        raise ConfigError("--against transformers merges no adapter into an encoder: choose --against eager")
    eager = lora is not None or reading.names_code or is_quantized(checkpoint) or not _known_to_transformers(checkpoint)
    if against == "eager" or (against is None and eager):
        return EagerEncoder(checkpoint, lora=lora, reading=reading)
    return TransformersEncoder(checkpoint, build_config(checkpoint, reading)[0])


def _known_to_transformers(checkpoint: Path) -> bool:
    if find_spec("transformers") is None:
        return False
    with quiet():
        import transformers

        return hasattr(transformers, ConfigReader.from_directory(checkpoint).architecture)


def _pooled(states: NDArray[Any], head: EmbeddingHead) -> NDArray[np.float32]:
    """A text's embedding [D] from the hidden states [n, D] of its tokens, all of them real."""
    match head.pooling:
        case Pooling.MEAN:
            pooled = states.astype(np.float64).mean(0)
        case Pooling.MAX:
            pooled = states.max(0)
        case Pooling.CLS:
            pooled = states[0]
    return np.asarray(pooled / np.linalg.norm(pooled) if head.normalised else pooled, np.float32)
