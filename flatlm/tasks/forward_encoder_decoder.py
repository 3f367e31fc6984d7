"""Encoders with a decoder called by keyword: a text that is read whole, and what is written about it."""

from typing import Any

import torch
import torch.nn.functional as F  # the field's own name for it
from torch import Tensor

from flatlm.errors import ConfigError
from flatlm.layers.attention import StepContext
from flatlm.layers.kv_cache import Uncached, place
from flatlm.tasks.forward import IGNORED_LABEL, as_ids, as_mask, cross_entropy


class EncoderDecoderForward:
    """input_ids [B, T]; attention_mask [B, T]: 1 for a token, 0 for padding; decoder_input_ids [B, T_d], padded behind; labels [B, T_d].

    Without decoder_input_ids the labels are what is written: moved by one, behind the model's start token, or behind their own last token
    where the model's texts end with their language. `hidden_states` are the decoder's, `encoder_hidden_states` the encoder's,
    `encoder_last_hidden_state` what the decoder looks at.
    """

    arguments = frozenset({"input_ids", "attention_mask", "decoder_input_ids", "labels"})

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(
        self, input_ids: Any = None, attention_mask: Any = None, decoder_input_ids: Any = None, labels: Any = None
    ) -> dict[str, Any]:
        """Raises ConfigError for what is missing, has the wrong shape, or is longer than the model was built for."""
        model, config = self._model, self._model.config
        if input_ids is None or (decoder_input_ids is None and labels is None):
            raise ConfigError("forward needs input_ids, and decoder_input_ids or labels")
        tokens = as_ids(input_ids, "input_ids", vocab_size=config.vocab_size)
        written = _shifted(labels, config.writing) if decoder_input_ids is None else decoder_input_ids
        written = as_ids(written, "decoder_input_ids", vocab_size=config.vocab_size)
        if len(written) != len(tokens):
            raise ConfigError(f"input_ids are {len(tokens)} texts, decoder_input_ids (or labels) are {len(written)}: give as many")
        mask = as_mask(attention_mask, tokens)
        for name, given, most in (
            ("input_ids", tokens, model.lengths.encoder),
            ("decoder_input_ids", written, model.lengths.decoder.length),
        ):
            if given.shape[1] > most:
                raise ConfigError(f"{name} are {given.shape[1]} tokens: at most {most} are read")
        encoded, read = self._encode(tokens, mask)
        logits, states = self._decode(written, encoded, mask)
        out = {"logits": logits, "hidden_states": states, "encoder_hidden_states": read, "encoder_last_hidden_state": encoded}
        if labels is not None:
            out["loss"] = cross_entropy(logits, labels)
        return out

    def _encode(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What the decoder looks at [B, T, D], and every layer's."""
        x, added = self._model.encoder_prologue(tokens, mask)
        states = [x]
        for block in self._model.encoder.blocks:
            x, _ = block(x, StepContext(None, added, None), Uncached())
            states.append(x)
        encoded = self._model.encoder.end(x)
        return encoded, (*states[:-1], encoded)

    def _decode(self, tokens: Tensor, encoded: Tensor, mask: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits [B, T_d, V], and every layer's."""
        model = self._model
        positions = torch.arange(tokens.shape[1], dtype=torch.int32)
        x, added = model.decoder_prologue(tokens, positions)
        length = model.lengths.decoder.length
        context, hidden = StepContext(None, added, place(positions, length, length)), model.hidden(mask)
        states = [x]
        for block, cache in zip(model.decoder.blocks, model.empty_caches(batch=len(tokens)), strict=True):
            x, _ = block.decode(x, context, cache, (block.cross.attention.hold(encoded), hidden))
            states.append(x)
        return model.epilogue(x), (*states[:-1], model.decoder.end(x))


def _shifted(labels: Any, writing: Any) -> Tensor:
    """Labels [B, T_d] as what was written before each of them; padding in the place of those that no loss counts."""
    targets = torch.as_tensor(labels)
    targets = targets[None] if targets.dim() == 1 else targets
    targets = targets.masked_fill(targets == IGNORED_LABEL, writing.pad)
    moved = F.pad(targets[:, :-1], (1, 0), value=writing.start)
    if writing.wraps:
        last = ((targets != writing.pad).sum(1, keepdim=True) - 1).clamp(min=0)
        moved[:, :1] = targets.gather(1, last)
    return moved
