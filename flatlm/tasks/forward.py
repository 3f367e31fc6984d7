"""How a model is called by keyword: one module for each kind of model, found by the type of its configuration."""

import importlib
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # the field's own name for it
from torch import Tensor, nn

from flatlm.errors import ConfigError

FORWARDS = {
    "ModelConfig": "flatlm.tasks.forward_decoder:DecoderForward",
    "EncoderConfig": "flatlm.tasks.forward_encoder:EncoderForward",
    "EncoderDecoderConfig": "flatlm.tasks.forward_encoder_decoder:EncoderDecoderForward",
}
FILLS_BLANKS = "flatlm.tasks.forward_infilling:InfillingForward"
"""Of a decoder that fills blanks."""
IGNORED_LABEL = -100
"""A label that no loss counts, as transformers has it."""


class Forward(Protocol):
    """A model's forward pass over whole texts, without a cache."""

    arguments: frozenset[str]
    """The keywords that it knows."""

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        """Gives `logits` (or what the head gives), `hidden_states`, and `loss` where `labels` are given. Raises ConfigError."""
        ...


def forward_of(module: nn.Module) -> Forward:
    """The forward pass of a re-authored model."""
    name = type(module.config).__name__
    if name not in FORWARDS:
        raise ConfigError(f"a model of the kind {name} cannot be called by keyword; known are {', '.join(FORWARDS)}")
    found = FILLS_BLANKS if getattr(module.config, "fills_blanks", False) else FORWARDS[name]
    path, class_name = found.split(":")
    forward: Forward = getattr(importlib.import_module(path), class_name)(module)
    return forward


def as_ids(values: Any, name: str, *, vocab_size: int) -> Tensor:
    """Ids [B, T] int32 from a tensor or lists, of one text or several. Raises ConfigError for what is none, or not in the vocabulary."""
    ids = torch.as_tensor(values)
    ids = ids[None] if ids.dim() == 1 else ids
    if ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        raise ConfigError(f"{name} must be whole numbers [B, T]; they are {ids.dtype} {list(ids.shape)}")
    if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
        raise ConfigError(f"{name} holds {int(ids.max() if ids.min() >= 0 else ids.min())}, outside the vocabulary of {vocab_size}")
    return ids.to(torch.int32)


def as_mask(values: Any, ids: Tensor, name: str = "attention_mask") -> Tensor:
    """A mask [B, T] float32 beside ids: 1 for a token, 0 for padding; None: all are tokens."""
    if values is None:
        return torch.ones(ids.shape)
    mask = torch.as_tensor(values)
    mask = mask[None] if mask.dim() == 1 else mask
    if mask.shape != ids.shape:
        raise ConfigError(f"{name} has the shape {list(mask.shape)}, the ids have {list(ids.shape)}: it says 1 or 0 for each of them")
    return (mask != 0).to(torch.float32)


def cross_entropy(logits: Tensor, labels: Any) -> Tensor:
    """The mean loss of labels [...] against logits [..., C], labels of IGNORED_LABEL aside."""
    targets = torch.as_tensor(labels).long()
    if targets.shape != logits.shape[:-1]:
        raise ConfigError(f"labels have the shape {list(targets.shape)}; these logits ask for {list(logits.shape[:-1])}")
    counted, classes = targets[targets != IGNORED_LABEL], logits.shape[-1]
    if counted.numel() and (int(counted.min()) < 0 or int(counted.max()) >= classes):
        raise ConfigError(
            f"labels are 0 to {classes - 1}, or {IGNORED_LABEL} where none counts; they hold {int(counted.min())} to {int(counted.max())}"
        )
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED_LABEL)
