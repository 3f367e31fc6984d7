"""Calls of a file's signatures: which ones read a text best, and one with its buffers."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flatlm.convert.signatures import PLACE_INPUTS, POSITION_IDS, PREFIX
from flatlm.errors import RuntimeFileError
from flatlm.generative.file_content import MASK, SignatureSpec
from flatlm.layers.config import MASKED

Logits: TypeAlias = NDArray[np.float32]
Places: TypeAlias = tuple[NDArray[np.int32], int]
"""Both rows of positions [2, T] of a call's tokens, and the context's length."""

_PREFILL_TOKEN_COST = 1 / 8
"""What each token of a prefill call takes, padding too, in decode steps; the call itself takes one, to read the weights.
Measured with 1.1B int8 weights and prefill_256: 1/8 on an x86 with AVX512-VNNI, 1/5 on another."""


class SignatureCall:
    """One signature with its buffers, which are made when it is first run: a prefill's logits alone may be 100s of MB."""

    def __init__(self, spec: SignatureSpec, model: Any, caches: dict[str, Any]) -> None:
        self.spec = spec
        self.has_logits = "logits" in spec.outputs
        self._model = model
        self._caches = caches

    def run(self, ids: NDArray[np.int64], position: int, places: Places) -> None:
        """Runs it on 1 to T ids, which begin at the position; the rest of its T is padded. `places`: for files that take them."""
        inputs, outputs = self._buffers
        tokens = np.zeros((1, self.spec.length), np.int32)
        tokens[0, : len(ids)] = ids
        inputs["tokens"].write(tokens)
        positions = np.arange(position, position + self.spec.length, dtype=np.int32)
        inputs["input_pos"].write(positions)
        if self.spec.mask_slots is not None:
            inputs[MASK].write(causal_mask(positions, self.spec.mask_slots))
        if self.spec.fills_blanks:
            inputs[POSITION_IDS].write(places[0])
            inputs[PREFIX].write(np.array([places[1]], np.int32))
        try:
            self._model.run_by_name(self.spec.name, inputs, outputs)
        except RuntimeError as error:
            raise RuntimeFileError(f"signature {self.spec.name} failed at position {position}: {error}") from error

    def logits(self) -> Logits:
        """A copy of the last run's, [T, V]."""
        shape = self.spec.outputs["logits"].shape
        values: Logits = self._buffers[1]["logits"].read(int(np.prod(shape)), np.float32)
        return values.reshape(shape[-2:])

    @cached_property
    def _buffers(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs and outputs, the shared caches among both."""
        name = self.spec.name
        keys = [key for key in ("tokens", "input_pos", MASK, *PLACE_INPUTS) if key in self.spec.inputs]
        inputs = {key: self._model.create_input_buffer_by_name(name, key) for key in keys}
        outputs = {"logits": self._model.create_output_buffer_by_name(name, "logits")} if self.has_logits else {}
        return inputs | self._caches, outputs | self._caches


def causal_mask(positions: NDArray[np.int32], slots: int) -> NDArray[np.float32]:
    """What is added to the scores [1, 1, T, S] of tokens at `positions` [T]: 0 up to their own slot, MASKED after it.

    Not minus infinity, which is NaN as soon as a kernel multiplies it by zero or a row holds nothing else.
    """
    visible = np.arange(slots) <= positions[:, None]
    return np.where(visible, np.float32(0), np.float32(MASKED))[None, None]


def split(count: int, *, lengths: Sequence[int], room: int) -> list[int]:
    """The cheapest calls that read `count` tokens: each a prefill length, or 1 for a decode step; the last may be padded.

    `room`: free slots of the cache. A call writes as many slots as it is long, and the update of one that would end
    outside is moved back onto older tokens by the runtime; so no call is longer than the room at its place.
    """
    best = [(0.0, 0)]  # for each number of tokens left: the cost of reading them, and less the length of the first call
    for left in range(1, count + 1):
        free = room - (count - left)
        calls = [(1 + best[left - 1][0], -1)]
        calls += [(1 + n * _PREFILL_TOKEN_COST + best[max(left - n, 0)][0], -n) for n in lengths if n <= free]
        best.append(min(calls))
    plan = []
    left = count
    while left > 0:
        plan.append(-best[left][1])
        left -= plan[-1]
    return plan
