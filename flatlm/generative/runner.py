"""Runs an exported file: prompts through its prefill signatures, one token at a time through decode.

LiteRT's CompiledModel with every KV cache bound once, as the input and the output of all signatures: the update writes
into the cache where it lies, and nothing is copied between steps. What the slots from `position` on hold is garbage
(padding, or an older text) that the model's mask hides until tokens overwrite it. Files that want the mask as an input, as
litert-torch writes them on request, get a causal one. Files that fill blanks are told that a text has none (`infilling.runner` fills).

A file with caches of several lengths is run over the shortest that the text fits, and what they hold moves on when it outgrows them.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flatlm.errors import RuntimeFileError
from flatlm.generative.file_content import SignatureSpec
from flatlm.generative.loading import ModelPart, available_cores, load
from flatlm.generative.model_file import CacheLevel, ModelFile, read_model_file
from flatlm.generative.signature_calls import Logits, Places, SignatureCall, split

Choice: TypeAlias = Callable[[CacheLevel], Sequence[SignatureSpec]]
"""Which signatures of a level, beside decode, may read a text."""


class Writer(Protocol):
    """What writes a text token by token: a `Runner`, and other kinds' runners."""

    @property
    def file(self) -> "ModelPart": ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def cache_length(self) -> int: ...
    @property
    def position(self) -> int: ...
    def reset(self) -> None: ...
    def require_room(self, count: int) -> None: ...
    def require_left_to_right(self) -> None: ...
    def prefill(self, ids: Sequence[int]) -> None: ...
    def reading(self, ids: Sequence[int]) -> Iterator[int]: ...
    def step(self, token: int) -> Logits: ...


class Runner:
    """One text being read and written by one model. Not for several threads at once."""

    def __init__(self, file: ModelFile, model: Any, *, threads: int) -> None:
        """From a loaded CompiledModel; use `Runner.open`."""
        self.file = file
        self.threads = threads
        self._model = model
        self._level = file.levels[0]
        self._caches: dict[str, Any] = {}
        self._calls: dict[str, SignatureCall] = {}
        self._empty = False  # the runtime's buffers hold anything at first
        self._take_up(self._level)
        self._position = 0
        self._written = 0  # slots, counted from the text's beginning: of a padded call, the padding too
        self.reset()

    @classmethod
    def open(cls, path: Path | str, *, threads: int | None = None, weight_cache: bool | Path = True) -> Self:
        """Loads a `.tflite` file or a `.litertlm` bundle; RuntimeFileError if it cannot be run.

        `threads`: by default one for each core that this process may use. `weight_cache`: True keeps one packed copy of
        the weights, in memory; a directory keeps it there for the next run too; False packs them once a signature.
        """
        file = read_model_file(Path(path))
        threads = available_cores() if threads is None else threads
        return load(file, lambda model: cls(file, model, threads=threads), threads=threads, weight_cache=weight_cache)

    def sibling(self) -> "Runner":
        """Another text over the same loaded weights, with caches of its own. Both are for the same thread."""
        return type(self)(self.file, self._model, threads=self.threads)

    @property
    def vocab_size(self) -> int:
        return self.file.vocab_size

    @property
    def cache_length(self) -> int:
        """S: the most tokens of one text, prompt and answer together."""
        return self.file.cache_length

    @property
    def kv_lengths(self) -> tuple[int, ...]:
        """S of all caches that the file has signatures for, from the shortest: a text moves through them as it grows."""
        return tuple(level.cache_length for level in self.file.levels)

    @property
    def kv_length(self) -> int:
        """S of the caches in use."""
        return self._level.cache_length

    @property
    def cache_bytes(self) -> int:
        """What the caches in use take."""
        return sum(int(np.prod(spec.shape)) * spec.dtype.itemsize for spec in self._level.decode.caches.values())

    @property
    def prefill_lengths(self) -> tuple[int, ...]:
        """The prefill signatures' T, from the shortest."""
        return tuple(spec.length for spec in self.file.prefill)

    @property
    def verify_length(self) -> int:
        """T of the signature that `verify` has; 1 where the file has none."""
        verify = self.file.levels[-1].verify
        return 1 if verify is None else verify.length

    @property
    def position(self) -> int:
        """Tokens in the cache."""
        return self._position

    @property
    def most_rewound(self) -> int:
        """How far `rewind` may go back behind the furthest slot that was written, other than to 0: one call, where a layer keeps a ring."""
        whole = self._level.shortest_cache >= self.kv_length
        return self.cache_length if whole else max((*self.prefill_lengths, self.verify_length))

    def reset(self) -> None:
        """Begin a new text, in caches that are as empty as at first: not even an overflow of the last text can reach this one."""
        if self._level is not self.file.levels[0]:
            self._take_up(self.file.levels[0])
        if not self._empty:
            for name, spec in self._level.decode.caches.items():
                self._caches[name].write(np.zeros(spec.shape, spec.dtype))
        self._position = self._written = 0
        self._empty = True

    def can_rewind(self, position: int) -> bool:
        """Whether `rewind` may go there: a ring no longer has what the window of an older position needs."""
        return 0 <= position <= self._position and (position == 0 or self._written - position <= self.most_rewound)

    def rewind(self, position: int) -> None:
        """Forget the tokens from `position` on, so that another text may share the ones before it."""
        if not 0 <= position <= self._position:
            raise RuntimeFileError(f"cannot go to position {position}: {self._position} tokens are in the cache")
        if not self.can_rewind(position):
            raise RuntimeFileError(
                f"{self.file.path}: cannot go back {self._position - position} tokens: layers with a window keep what they need for "
                f"{self.most_rewound}, padding of the last prefill included; reset, and read the text again"
            )
        self._position = position
        self._written = self._written if position else 0
        self._shrink()

    def prefill(self, ids: Sequence[int]) -> None:
        """Reads all of `ids`, without their logits."""
        for _ in self.reading(ids):
            pass

    def reading(self, ids: Sequence[int]) -> Iterator[int]:
        """The same, call by call, for who takes turns: after each, how many of `ids` it read."""
        for _, used in self._read(ids, lambda level: level.prefill):
            yield used

    def prefill_logits(self, ids: Sequence[int]) -> Logits:
        """Reads all of `ids`: the logits [n, V] after each. RuntimeFileError where the file's prefill signatures give none."""
        if not any("logits" in spec.outputs for spec in self.file.prefill):
            raise RuntimeFileError(
                f"{self.file.path}: its prefill signatures give no logits, so a text's likelihood cannot be read from it; "
                "export it with --prefill-logits"
            )
        return self._logits_of(ids, lambda level: [spec for spec in level.prefill if "logits" in spec.outputs])

    def verify(self, ids: Sequence[int]) -> Logits:
        """Reads all of `ids`, such as a draft's: the logits [n, V] after each. In as few calls as the signature for it allows."""
        return self._logits_of(ids, lambda level: [] if level.verify is None else [level.verify])

    def step(self, token: int) -> Logits:
        """Reads one token: the logits [V] of the next."""
        return self._logits_of([token], lambda level: ())[0]  # type: ignore[no-any-return]

    def read_cache(self, name: str) -> NDArray[Any]:
        """A copy of one cache as it is now, in its own shape and type; slots that no token is in hold garbage."""
        spec = self._level.decode.caches[name]
        values: NDArray[Any] = self._caches[name].read(int(np.prod(spec.shape)), spec.dtype.type)
        return values.reshape(spec.shape)

    def copy_from(self, other: "Runner") -> None:
        """Take over the text of a `sibling`: what its caches hold, and its position."""
        if other._model is not self._model:
            raise RuntimeFileError(f"{self.file.path}: a text can be taken over from a sibling only, which has the same caches")
        self._take_up(other._level, other)
        self._position, self._written, self._empty = other._position, other._written, other._empty

    def close(self) -> None:
        """Frees its caches, and the model with the last of its siblings. The runner cannot be used after it."""
        self._calls.clear()
        self._caches.clear()
        del self._model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _logits_of(self, ids: Sequence[int], able: Choice) -> Logits:
        """Reads all of `ids`: the logits [n, V] after each."""
        parts = [call.logits()[:used] for call, used in self._read(ids, able)]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, self.vocab_size), np.float32)

    def _read(self, ids: Sequence[int], able: Choice) -> Iterator[tuple[SignatureCall, int]]:
        """Runs `ids` through the signatures that `able` names, and decode; after each call, the call, and how many ids it took."""
        tokens = np.asarray(ids, np.int64)
        self.require_room(len(tokens))
        self._require_known(tokens)
        self._grow(self._position + len(tokens))
        level = self._level
        signatures = {spec.length: spec for spec in able(level)}
        for length in split(len(tokens), lengths=tuple(sorted(signatures)), room=level.cache_length - self._position):
            spec = level.decode if length == 1 else signatures[length]
            chunk, tokens = tokens[:length], tokens[length:]
            yield self._call(spec, chunk), len(chunk)

    def _call(self, spec: SignatureSpec, ids: NDArray[np.int64]) -> SignatureCall:
        """Runs a signature on ids that it has room for, at the position."""
        call = self._calls.get(spec.name)
        if call is None:
            call = self._calls[spec.name] = SignatureCall(spec, self._model, self._caches)
        self._empty = False
        call.run(ids, self._position, self._places(self._position, spec.length))
        self._written = max(self._written, self._position + spec.length)
        self._position += len(ids)
        return call

    def _grow(self, count: int) -> None:
        """Move on to the shortest caches that hold `count` tokens, if the ones in use do not."""
        if count > self.kv_length:
            self._take_up(next(level for level in self.file.levels if level.cache_length >= count), self)

    def _shrink(self) -> None:
        """Go back to shorter caches, where the text left them half empty, and no ring has overwritten what they would hold."""
        level = next(level for level in self.file.levels if level.cache_length >= 2 * self._position or level is self._level)
        if level.cache_length < self.kv_length and self._written <= self._level.shortest_cache:
            self._take_up(level, self)

    def _take_up(self, level: CacheLevel, source: "Runner | None" = None) -> None:
        """Use caches of a level, with what those of `source` hold; without one, they hold nothing in particular."""
        held = {} if source is None else {name: source.read_cache(name) for name in level.decode.caches}
        if source is self or source is None or level is not self._level:
            self._level = level
            self._calls = {}
            name = level.decode.name
            self._caches = {cache: self._model.create_input_buffer_by_name(name, cache) for cache in level.decode.caches}
            self._empty = False
        for name, values in held.items():
            spec = level.decode.caches[name]
            whole = np.zeros(spec.shape, spec.dtype)
            both = tuple(slice(min(sizes)) for sizes in zip(values.shape, spec.shape, strict=True))
            whole[both] = values[both]
            self._caches[name].write(whole)

    def _places(self, position: int, length: int) -> Places:
        """What a file that fills blanks is told of a call's tokens: here, that they are read from left to right."""
        own = np.arange(position, position + length, dtype=np.int32)
        return np.stack([own, np.zeros_like(own)]), 0

    def require_room(self, count: int) -> None:
        """RuntimeFileError if `count` more tokens do not fit."""
        if count > self.cache_length - self._position:
            used = f", of which {self._position} are used" if self._position else ""
            raise RuntimeFileError(
                f"{self.file.path}: {count} tokens do not fit its context of {self.cache_length}{used}; "
                "shorten the text, or export the model with a larger --kv-cache-len"
            )

    def require_left_to_right(self) -> None:
        """RuntimeFileError for a file whose model fills blanks: it can be told to read on, but was not trained to write so."""
        self.file.require_left_to_right()

    def _require_known(self, tokens: NDArray[np.int64]) -> None:
        unknown = tokens[(tokens < 0) | (tokens >= self.vocab_size)]
        if len(unknown):
            raise RuntimeFileError(
                f"{self.file.path}: token {unknown[0]} is outside its vocabulary of {self.vocab_size}; is the tokenizer this model's own?"
            )
