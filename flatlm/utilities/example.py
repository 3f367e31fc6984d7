"""What every family's file offers to a reader who wants to try it: an eager model from a checkpoint, and a run of it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatlm.layers.kv_cache import empty_caches
from flatlm.layers.model import Decoder
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.configs.registry import build_config
from flatlm.utilities.kinds.table import kind_of
from flatlm.utilities.reading import AS_IT_SAYS, Reading
from flatlm.utilities.weights.loader import ModelLoader

SAMPLE_TOKENS = (1, 2, 3, 5, 8, 13)


def build_model(
    checkpoint_path: str | Path, *, kv_cache_max_len: int = 1024, lora: Path | None = None, reading: Reading = AS_IT_SAYS
) -> Any:
    """The eager model, shaped by the checkpoint's config.json, its weights in float32: a `Decoder`, or what its kind of model is.

    `kv_cache_max_len`: the longest context, where the model knows as many positions. `lora`: an adapter to merge into the weights.

    Raises ConfigError, CheckpointError.
    """
    directory = Path(checkpoint_path)
    config, builder = build_config(directory, reading)
    with open_checkpoint(directory, lora=lora) as checkpoint:
        loader = ModelLoader(checkpoint, builder.tensor_names)
        config = loader.fit(config)
        model = kind_of(config).build(config, kv_cache_max_len)
        loader.load(model)
    return model


def define_and_run(checkpoint_path: str | Path) -> Tensor:
    """Logits [1, T, V] of the eager model for a few sample tokens."""
    return run_sample(build_model(checkpoint_path))


@torch.inference_mode()
def run_sample(model: Decoder, tokens: tuple[int, ...] = SAMPLE_TOKENS) -> Tensor:
    """Logits [1, T, V] of a forward pass over sample tokens, at positions 0, 1, ..."""
    ids = torch.tensor([tokens], dtype=torch.int32) % model.config.vocab_size
    logits, _ = model(ids, torch.arange(len(tokens), dtype=torch.int32), empty_caches(model.config, model.geometry))
    return logits  # type: ignore[no-any-return]
