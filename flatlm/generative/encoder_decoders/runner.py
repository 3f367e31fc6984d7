"""Runs an exported encoder with a decoder: a text is read by one call, and another written token by token.

What `encode` gives is bound once, as its output and as the input of `decode`, and so are the KV caches: nothing is copied between steps.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flatlm.errors import RuntimeFileError
from flatlm.generative.encoder_decoders.file import EncoderDecoderFile, read_encoder_decoder_file
from flatlm.generative.file_content import SignatureSpec
from flatlm.generative.loading import available_cores, load
from flatlm.generative.signature_calls import Logits


class EncoderDecoderRunner:
    """One text that was read, and one that is being written. Not for several threads at once.

    `read` a text first; then it is a `Writer`, whose texts begin with `file.writing.start`.
    """

    def __init__(self, file: EncoderDecoderFile, model: Any, *, threads: int) -> None:
        """From a loaded CompiledModel; use `EncoderDecoderRunner.open`."""
        self.file = file
        self.threads = threads
        self._model = model
        self._cross = {name: model.create_input_buffer_by_name("decode", name) for name in file.cross}
        self._caches = {name: model.create_input_buffer_by_name("decode", name) for name in file.decode.caches}
        self._encoders = {spec.length: _Encoder(spec, model, self._cross) for spec in file.encoders}
        inputs = {name: model.create_input_buffer_by_name("decode", name) for name in ("tokens", "input_pos", "encoder_mask")}
        self._logits = model.create_output_buffer_by_name("decode", "logits")
        self._inputs = {**inputs, **self._cross, **self._caches}
        self._outputs = {"logits": self._logits, **self._caches}
        self._read: tuple[int, ...] | None = None
        self._position = 0
        self._empty = False
        self.reset()

    @classmethod
    def open(cls, path: Path | str, *, threads: int | None = None, weight_cache: bool | Path = True) -> Self:
        """Loads a `.tflite` file; RuntimeFileError if it cannot be run. `threads`, `weight_cache`: as `Runner.open` has them."""
        file = read_encoder_decoder_file(Path(path))
        threads = available_cores() if threads is None else threads
        return load(file, lambda model: cls(file, model, threads=threads), threads=threads, weight_cache=weight_cache)

    @property
    def vocab_size(self) -> int:
        return self.file.vocab_size

    @property
    def cache_length(self) -> int:
        """S: the most tokens of a text that is written, with the one it begins with."""
        return self.file.cache_length

    @property
    def encoder_length(self) -> int:
        """S_e: the most tokens of a text that is read."""
        return self.file.encoder_length

    @property
    def position(self) -> int:
        """Tokens of the text that is written."""
        return self._position

    def read(self, ids: Sequence[int]) -> None:
        """Reads a text as a whole, by the shortest signature that holds it; what was written before is forgotten."""
        tokens = np.asarray(ids, np.int64)
        if not len(tokens):
            raise RuntimeFileError("the text to read has no tokens; one is the least")
        if len(tokens) > self.encoder_length:
            raise RuntimeFileError(
                f"{self.file.path}: {len(tokens)} tokens do not fit its encoder, which reads {self.encoder_length}; "
                "shorten the text, or export the model with a larger --prefill"
            )
        self._require_known(tokens)
        self._read = None
        encoder = self._encoders[min(length for length in self._encoders if length >= len(tokens))]
        encoder.run(tokens, self.file.writing.pad)
        mask = np.zeros((1, self.encoder_length), np.float32)
        mask[0, : len(tokens)] = 1
        self._inputs["encoder_mask"].write(mask)
        self._read = tuple(tokens.tolist())
        self.reset()

    def reset(self) -> None:
        """Begin to write anew, about the text that was read, in caches that are as empty as at first."""
        if not self._empty:
            for name, spec in self.file.decode.caches.items():
                self._caches[name].write(np.zeros(spec.shape, spec.dtype))
        self._position = 0
        self._empty = True

    def prefill(self, ids: Sequence[int]) -> None:
        """Takes all of `ids` as written, without their logits; one after another, since files have no signature for more."""
        for _ in self.reading(ids):
            pass

    def reading(self, ids: Sequence[int]) -> Iterator[int]:
        """The same, call by call: after each, how many of `ids` it took."""
        self.require_room(len(ids))
        for token in ids:
            self._step(int(token))
            yield 1

    def step(self, token: int) -> Logits:
        """Takes one token as written: the logits [V] of the next."""
        self._step(token)
        values: Logits = self._logits.read(self.vocab_size, np.float32)
        return values

    def require_room(self, count: int) -> None:
        """RuntimeFileError if `count` more tokens cannot be written."""
        if count > self.cache_length - self._position:
            used = f", of which {self._position} are used" if self._position else ""
            raise RuntimeFileError(
                f"{self.file.path}: {count} tokens do not fit its decoder's context of {self.cache_length}{used}; "
                "write less, or export the model with a larger --kv-cache-len"
            )

    def require_left_to_right(self) -> None:
        """It always writes so."""

    def read_cross(self, name: str) -> NDArray[Any]:
        """A copy of one of the decoder layers' keys or values of the text that was read."""
        spec = self.file.cross[name]
        values: NDArray[Any] = self._cross[name].read(int(np.prod(spec.shape)), spec.dtype.type)
        return values.reshape(spec.shape)

    def close(self) -> None:
        """Frees the model. The runner cannot be used after it."""
        for buffers in (self._encoders, self._cross, self._caches, self._inputs, self._outputs):
            buffers.clear()
        del self._logits, self._model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _step(self, token: int) -> None:
        if self._read is None:
            raise RuntimeFileError(f"{self.file.path}: nothing was read yet that could be written about; `read` a text first")
        self.require_room(1)
        self._require_known(np.array([token]))
        self._inputs["tokens"].write(np.array([[token]], np.int32))
        self._inputs["input_pos"].write(np.array([self._position], np.int32))
        self._empty = False
        try:
            self._model.run_by_name("decode", self._inputs, self._outputs)
        except RuntimeError as error:
            raise RuntimeFileError(f"signature decode failed at position {self._position}: {error}") from error
        self._position += 1

    def _require_known(self, tokens: NDArray[np.int64]) -> None:
        unknown = tokens[(tokens < 0) | (tokens >= self.vocab_size)]
        if len(unknown):
            raise RuntimeFileError(
                f"{self.file.path}: token {unknown[0]} is outside its vocabulary of {self.vocab_size}; is the tokenizer this model's own?"
            )


class _Encoder:
    """One signature that reads, with its buffers, which are made when it is first run."""

    def __init__(self, spec: SignatureSpec, model: Any, cross: dict[str, Any]) -> None:
        self.spec, self._model, self._cross = spec, model, cross

    def run(self, ids: NDArray[np.int64], pad: int) -> None:
        """Runs it on 1 to T ids; the rest of its T is padded."""
        tokens, mask = np.full((1, self.spec.length), pad, np.int32), np.zeros((1, self.spec.length), np.float32)
        tokens[0, : len(ids)], mask[0, : len(ids)] = ids, 1
        self._inputs["tokens"].write(tokens)
        self._inputs["mask"].write(mask)
        try:
            self._model.run_by_name(self.spec.name, self._inputs, self._cross)
        except RuntimeError as error:
            raise RuntimeFileError(f"signature {self.spec.name} failed on {len(ids)} tokens: {error}") from error

    @cached_property
    def _inputs(self) -> dict[str, Any]:
        return {key: self._model.create_input_buffer_by_name(self.spec.name, key) for key in ("tokens", "mask")}
