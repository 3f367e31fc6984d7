"""Checkpoints loaded by transformers whole: what is missing in one it fills with random numbers, which are no reference."""

from pathlib import Path
from typing import Any

import torch

from flatlm.errors import CheckpointError


def load_pretrained(model_class: Any, checkpoint: Path, *, unused: str | None = None) -> Any:
    """The checkpoint in one of transformers' classes, in float32. Code in the checkpoint is never run.

    `unused`: a module whose weights may be missing, as nothing reads what it makes. A bias may be missing that transformers makes zero:
    so it means a model without it, such as a GPT-2 without attn.c_attn.bias; where FlatLM's own model has one, the plan of its weights
    says that it is missing. CheckpointError for others that are missing; what transformers raises is passed on.
    """
    model, loading = model_class.from_pretrained(
        checkpoint, dtype=torch.float32, trust_remote_code=False, local_files_only=True, output_loading_info=True
    )
    missing = sorted(name for name in loading["missing_keys"] if unused is None or unused not in name.split("."))
    weights = model.state_dict()
    if any(not name.endswith(".bias") or weights[name].any() for name in missing):
        raise CheckpointError(
            f"{checkpoint} has no {', '.join(missing[:3])}{f' and {len(missing) - 3} more' if missing[3:] else ''}, which "
            f"{type(model).__name__} has: it is a checkpoint for something else, so give the one that the file came from"
        )
    return model
