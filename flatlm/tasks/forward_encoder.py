"""Encoders called by keyword: whole texts, padded behind."""

from typing import Any

import torch
import torch.nn.functional as F  # the field's own name for it
from torch import Tensor

from flatlm.errors import ConfigError
from flatlm.layers.attention import StepContext
from flatlm.layers.kv_cache import Uncached
from flatlm.tasks.forward import as_ids, as_mask, cross_entropy

MAIN = ("logits", "embedding", "hidden_states")
"""Which of a head's outputs is called `logits` here: the first that it gives."""


class EncoderForward:
    """input_ids [B, T]; attention_mask [B, T]: 1 for a token, 0 for padding; token_type_ids [B, T], which FlagAI calls segment_ids; labels.

    `logits` are the head's; of a model without one its last hidden states, of one that embeds its vectors [B, D]. Labels: [B, T] of tokens
    (IGNORED_LABEL: not counted), [B] of texts, [B, C] of 0 and 1 where a text has several, and numbers [B] of a regression.
    """

    arguments = frozenset({"input_ids", "attention_mask", "token_type_ids", "segment_ids", "labels"})

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        segment_ids: Any = None,
        labels: Any = None,
    ) -> dict[str, Any]:
        """Raises ConfigError for what has the wrong shape, or is longer than the model knows positions."""
        model, config = self._model, self._model.config
        if input_ids is None:
            raise ConfigError("forward needs input_ids")
        tokens = as_ids(input_ids, "input_ids", vocab_size=config.vocab_size)
        if tokens.shape[1] > config.max_positions:
            raise ConfigError(f"a text of {tokens.shape[1]} tokens: the model knows {config.max_positions} positions")
        mask = as_mask(attention_mask, tokens)
        types = token_type_ids if token_type_ids is not None else segment_ids
        if types is not None:
            types = as_ids(types, "token_type_ids", vocab_size=max(config.token_types, 1)).expand(tokens.shape)
        x, added = model.prologue(tokens, mask, types)
        states = [x]
        for index in config.layers:
            x, _ = model.blocks[index](x, StepContext(None, added, None), Uncached())
            states.append(x)
        out = dict(model.epilogue(x, mask))
        logits = out[next(name for name in MAIN if name in out)]
        out |= {"logits": logits, "hidden_states": tuple(states)}
        if labels is not None:
            out["loss"] = head_loss(logits, labels)
        return out


def head_loss(logits: Tensor, labels: Any) -> Tensor:
    """Mean squares for one number a text; for labels [B, C] of floats the cross entropy of each by itself; else that of classes."""
    targets = torch.as_tensor(labels)
    if logits.dim() == 2 and logits.shape[1] == 1:
        return F.mse_loss(logits[:, 0], targets.flatten().to(logits.dtype))
    if targets.is_floating_point() and targets.shape == logits.shape:
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
    return cross_entropy(logits, targets)
