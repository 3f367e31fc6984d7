"""Models that fill blanks called by keyword: a context and the answers to its blanks, read at once (layers/infilling.py)."""

from typing import Any

import torch
from torch import Tensor

from flatlm.errors import ConfigError
from flatlm.layers.attention import StepContext
from flatlm.layers.config import MASKED
from flatlm.layers.kv_cache import Uncached
from flatlm.tasks.forward import as_ids, cross_entropy


class InfillingForward:
    """input_ids [B, T]; position_ids [B, 2, T]: row 0 positions, row 1 places within a blank's answer, 0 in the context; attention_mask
    [B]: each context's length; labels [B, T]: the loss is of the logits at the same places.

    Without position_ids all of a text is its context; without attention_mask a context ends where row 1 is first above 0.
    """

    arguments = frozenset({"input_ids", "position_ids", "attention_mask", "labels"})

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, input_ids: Any = None, position_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> dict[str, Any]:
        """Raises ConfigError for what has the wrong shape, or is beyond the positions that the model knows."""
        if input_ids is None:
            raise ConfigError("forward needs input_ids")
        model, config = self._model, self._model.config
        tokens = as_ids(input_ids, "input_ids", vocab_size=config.vocab_size)
        rows = _rows(position_ids, tokens, min(config.position_embedding.rows, config.block_position_embedding.rows))
        mask = _mask(_lengths(attention_mask, rows), tokens.shape[1])
        x = model.embedding(tokens) + model.position_embedding(rows[:, 0]) + model.block_position_embedding(rows[:, 1])
        states = [x]
        for block in model.blocks:
            x, _ = block(x, StepContext(None, mask, None), Uncached())
            states.append(x)
        logits = model.epilogue(x)
        out: dict[str, Any] = {"logits": logits, "hidden_states": (*states[:-1], model.final_norm(x))}
        if labels is not None:
            out["loss"] = cross_entropy(logits, labels)
        return out


def _rows(given: Any, tokens: Tensor, most: int) -> Tensor:
    """Both rows of positions, [B, 2, T] int32."""
    batch, length = tokens.shape
    if given is None:
        own = torch.arange(length, dtype=torch.int32).expand(batch, length)
        rows = torch.stack([own, torch.zeros_like(own)], 1)
    else:
        rows = torch.as_tensor(given).to(torch.int32)
        rows = rows[None] if rows.dim() == 2 else rows
        if rows.shape != (batch, 2, length):
            raise ConfigError(f"position_ids have the shape {list(rows.shape)}; two rows for each text are {[batch, 2, length]}")
    if int(rows.min()) < 0 or int(rows.max()) >= most:
        raise ConfigError(f"position {int(rows.max() if rows.min() >= 0 else rows.min())}: the model knows 0 to {most - 1}")
    return rows


def _lengths(given: Any, rows: Tensor) -> Tensor:
    """Of each text's context, [B]."""
    if given is None:
        return (rows[:, 1].cumsum(-1) == 0).sum(-1)
    lengths = torch.as_tensor(given).reshape(-1)
    if lengths.shape[0] not in (1, rows.shape[0]):
        raise ConfigError(f"attention_mask is the length of each text's context, [{rows.shape[0]}]; it has {lengths.shape[0]} numbers")
    if int(lengths.min()) < 0 or int(lengths.max()) > rows.shape[-1]:
        raise ConfigError(f"attention_mask holds contexts of {lengths.tolist()[:8]} tokens; the texts are {rows.shape[-1]} long")
    return lengths.expand(rows.shape[0])


def _mask(lengths: Tensor, tokens: int) -> Tensor:
    """What is added to scores, [B, 1, T, T]: all see the context, and behind it each what is not after it."""
    order = torch.arange(tokens)
    seen = (order[None, :] <= order[:, None])[None] | (order[None, :] < lengths[:, None])[:, None, :]
    return torch.where(seen, 0.0, MASKED)[:, None]
