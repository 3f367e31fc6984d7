"""Decoders called by keyword: whole texts at once, padded at either end."""

from typing import Any

import torch
from torch import Tensor

from flatlm.errors import ConfigError
from flatlm.layers.attention import StepContext
from flatlm.layers.block import Block
from flatlm.layers.config import MASKED, MaskConfig
from flatlm.layers.kv_cache import Uncached
from flatlm.layers.mask import attention_mask
from flatlm.layers.model import Decoder
from flatlm.layers.rope import rope_tables
from flatlm.tasks.forward import IGNORED_LABEL, as_ids, as_mask, cross_entropy


class DecoderForward:
    """input_ids [B, T]; attention_mask [B, T]: 1 for a token, 0 for padding; position_ids [B, T] (None: a text's tokens are counted from 0,
    its padding is not); labels [B, T]: the loss is of each token that follows another.
    """

    arguments = frozenset({"input_ids", "attention_mask", "position_ids", "labels"})

    def __init__(self, model: Decoder) -> None:
        self._model = model

    def __call__(self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, labels: Any = None) -> dict[str, Any]:
        """Raises ConfigError for what has the wrong shape, or is longer than the model knows positions."""
        if input_ids is None:
            raise ConfigError("forward needs input_ids")
        config = self._model.config
        tokens = as_ids(input_ids, "input_ids", vocab_size=config.vocab_size)
        real = as_mask(attention_mask, tokens)
        positions = _positions(position_ids, real, config.max_positions)
        x = self._model.embed(tokens, positions)
        states = [x]
        length = int(positions.max()) + 1
        ropes = {rope: tuple(table[positions][:, :, None] for table in rope_tables(rope, length)) for rope in config.ropes}
        masks = {block.attention.mask: _mask(block.attention.mask, real) for block in config.blocks}
        for layer, kind in zip(self._model.blocks, config.blocks, strict=True):
            assert isinstance(layer, Block)
            rope = None if kind.attention.rope is None else ropes[kind.attention.rope]
            x, _ = layer(x, StepContext(rope, masks[kind.attention.mask], None), Uncached())  # type: ignore[arg-type]
            states.append(x)
        logits = self._model.epilogue(x)
        out: dict[str, Any] = {"logits": logits, "hidden_states": (*states[:-1], self._model.final_norm(x))}
        if labels is not None:
            out["loss"] = next_token_loss(logits, labels)
        return out


def next_token_loss(logits: Tensor, labels: Any) -> Tensor:
    """Of labels [B, T], each predicted by the logits [B, T, V] one place before it."""
    targets = torch.as_tensor(labels).long()
    targets = targets[None] if targets.dim() == 1 else targets
    following = torch.nn.functional.pad(targets[:, 1:], (0, 1), value=IGNORED_LABEL)
    return cross_entropy(logits, following)


def _positions(given: Any, real: Tensor, most: int) -> Tensor:
    """The tokens' positions [B, T] int64; those of padding are 0."""
    if given is None:
        positions = ((real.cumsum(-1) - 1).clamp(min=0) * real).long()
    else:
        positions = torch.as_tensor(given).long()
        if positions.dim() < 2 or positions.shape[0] == 1:  # the same for all texts
            positions = positions.reshape(1, -1).expand(len(real), -1)
        if positions.shape != real.shape:
            raise ConfigError(f"position_ids have the shape {list(positions.shape)}, the ids have {list(real.shape)}")
    if int(positions.min()) < 0 or int(positions.max()) >= most:
        raise ConfigError(f"position {int(positions.max() if positions.min() >= 0 else positions.min())}: the model knows 0 to {most - 1}")
    return positions


def _mask(config: MaskConfig, real: Tensor) -> Tensor:
    """What is added to the scores of texts with paddings of their own, [B, 1 or N, T, T]."""
    order = torch.arange(real.shape[1], dtype=torch.int32)
    causal = attention_mask(config, order, order)
    return (causal if causal.dim() == 3 else causal[None]) + ((1.0 - real) * MASKED)[:, None, None, :]
