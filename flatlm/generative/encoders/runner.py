"""Runs an encoder's file: a text through the shortest signature that it fits, padded and masked."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flatlm.errors import RuntimeFileError
from flatlm.generative.encoders.encoder_file import TOKEN_TYPES, TOKENS, EncoderFile, read_encoder_file
from flatlm.generative.file_content import MASK, SignatureSpec
from flatlm.generative.loading import available_cores, load

Outputs = dict[str, NDArray[np.float32]]


class EncoderRunner:
    """One model that reads texts, each by itself. Not for several threads at once."""

    def __init__(self, file: EncoderFile, model: Any, *, threads: int) -> None:
        """From a loaded CompiledModel; use `EncoderRunner.open`."""
        self.file = file
        self.threads = threads
        self._signatures = {length: _Signature(spec, model) for length, spec in file.signatures.items()}

    @classmethod
    def open(cls, path: Path | str, *, threads: int | None = None, weight_cache: bool | Path = True) -> Self:
        """Loads a `.tflite` file; RuntimeFileError if it cannot be run. The options are those of `Runner.open`."""
        file = read_encoder_file(Path(path))
        threads = available_cores() if threads is None else threads
        return load(file.content, lambda model: cls(file, model, threads=threads), threads=threads, weight_cache=weight_cache)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The signatures' T, from the shortest."""
        return tuple(self._signatures)

    def run(self, ids: Sequence[int], token_types: Sequence[int] | None = None) -> Outputs:
        """What the model gives for a text's ids: of each token [n, D], or of the text [D], by the outputs' names.

        `token_types`: of which part of the text each token is (None: of the first). RuntimeFileError for a text that is empty or too long
        (nothing is cut off here), for ids and types that the model does not have.
        """
        tokens = self._whole_numbers(ids, "tokens")
        types = None if token_types is None else self._whole_numbers(token_types, "token types")
        self._require(tokens, types)
        signature = next(own for length, own in self._signatures.items() if length >= len(tokens))
        return signature.run(tokens, types, self.file.pad_token_id)

    def close(self) -> None:
        """Frees the model. The runner cannot be used after it."""
        self._signatures.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _whole_numbers(self, values: Sequence[int], what: str) -> NDArray[np.int64]:
        found = np.asarray(values)
        if found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
            raise RuntimeFileError(f"{self.file.path}: {what} are a list of whole numbers, not {str(values)[:60]}")
        return found.astype(np.int64)

    def _require(self, tokens: NDArray[np.int64], token_types: NDArray[np.int64] | None) -> None:
        path, longest = self.file.path, self.file.longest
        if not 0 < len(tokens) <= longest:
            raise RuntimeFileError(
                f"{path}: a text of {len(tokens)} tokens does not fit; it reads 1 to {longest}. Cut the text, or export the model with a "
                "longer --prefill"
            )
        unknown = tokens[(tokens < 0) | (tokens >= (self.file.vocab_size or 2**31))]
        if len(unknown):
            raise RuntimeFileError(
                f"{path}: token {unknown[0]} is outside its vocabulary of {self.file.vocab_size}; is the tokenizer this model's own?"
            )
        if token_types is not None and len(token_types) != len(tokens):
            raise RuntimeFileError(f"{len(token_types)} token types for {len(tokens)} tokens: give one for each")
        if token_types is not None and token_types.any() and not self.file.has_token_types:
            raise RuntimeFileError(f"{path}: its model has no token types: leave them out, or give zeros")
        count = max(self.file.token_types, 1)
        if token_types is not None and len(beyond := token_types[(token_types < 0) | (token_types >= count)]):
            raise RuntimeFileError(f"{path}: token type {beyond[0]} is outside its model's {count}: they are 0 to {count - 1}")


class _Signature:
    """One signature with its buffers, which are made when it is first run."""

    def __init__(self, spec: SignatureSpec, model: Any) -> None:
        self.spec = spec
        self._model = model

    def run(self, tokens: NDArray[np.int64], token_types: NDArray[np.int64] | None, padding: int) -> Outputs:
        inputs, outputs = self._buffers
        count = len(tokens)
        self._write(TOKENS, tokens, padding)
        self._write(MASK, np.ones(count), 0)
        if TOKEN_TYPES in inputs:
            self._write(TOKEN_TYPES, np.zeros(count) if token_types is None else token_types, 0)
        try:
            self._model.run_by_name(self.spec.name, inputs, outputs)
        except RuntimeError as error:
            raise RuntimeFileError(f"signature {self.spec.name} failed: {error}") from error
        return {name: self._read(name, count) for name in outputs}

    def _write(self, name: str, values: NDArray[Any], padding: int) -> None:
        spec = self.spec.inputs[name]
        padded = np.full(spec.shape, padding, spec.dtype)
        padded[0, : len(values)] = values
        self._buffers[0][name].write(padded)

    def _read(self, name: str, count: int) -> NDArray[np.float32]:
        """An output of the last run, without the batch and without what belongs to padding."""
        shape = self.spec.outputs[name].shape
        values: NDArray[np.float32] = self._buffers[1][name].read(int(np.prod(shape)), np.float32).reshape(shape)[0]
        return values[:count] if len(shape) == 3 else values

    @cached_property
    def _buffers(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Inputs and outputs."""
        name, model = self.spec.name, self._model
        inputs = {key: model.create_input_buffer_by_name(name, key) for key in self.spec.inputs}
        return inputs, {key: model.create_output_buffer_by_name(name, key) for key in self.spec.outputs}
