"""Runs an exported file: prompts through its prefill signatures, one token at a time through decode.

LiteRT's CompiledModel with every KV cache bound once, as the input and the output of all signatures: the update writes
into the cache where it lies, and nothing is copied between steps. What the slots from `position` on hold is garbage
(padding, or an older text) that the model's mask hides until tokens overwrite it. Files that want the mask as an input, as
litert-torch writes them on request, get a causal one. Files that fill blanks are told that a text has none (`infilling.runner` fills).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from flatlm.convert.signatures import PLACE_INPUTS, POSITION_IDS, PREFIX
from flatlm.errors import RuntimeFileError
from flatlm.generative.memory import packed_weights, section_as_file
from flatlm.generative.model_file import MASK, ModelFile, SignatureSpec, read_model_file
from flatlm.layers.config import MASKED

Logits = NDArray[np.float32]
T = TypeVar("T")
Places = tuple[NDArray[np.int32], int]
"""Both rows of positions [2, T] of a call's tokens, and the context's length."""

_PREFILL_TOKEN_COST = 1 / 8
"""What each token of a prefill call takes, padding too, in decode steps; the call itself takes one, to read the weights.
Measured with 1.1B int8 weights and prefill_256: 1/8 on an x86 with AVX512-VNNI, 1/5 on another."""


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
    def step(self, token: int) -> Logits: ...


class ModelPart(Protocol):
    """Where a model lies in its file."""

    @property
    def path(self) -> Path: ...
    @property
    def offset(self) -> int: ...
    @property
    def size(self) -> int: ...


def load(file: ModelPart, make: Callable[[Any], T], *, threads: int, weight_cache: bool | Path = True) -> T:
    """What `make` makes of the file's CompiledModel, on the CPU; RuntimeFileError if the file cannot be run.

    `weight_cache`: as `Runner.open` has it.
    """
    from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, HardwareAccelerator, Options

    if threads < 1:
        raise RuntimeFileError(f"{threads} threads were asked for; one is the least")
    with (
        section_as_file(file.path, file.offset, file.size) as model_path,
        packed_weights(file.path, weight_cache) as cache_path,
        _silenced() as said,
    ):
        cpu = CpuOptions(num_threads=threads, xnnpack_weight_cache_path=cache_path)
        options = Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=cpu)
        try:
            return make(CompiledModel.from_file(str(model_path), environment=_environment(), options=options))
        except (RuntimeError, ValueError) as error:
            reasons = [line.removeprefix("ERROR: ") for line in said() if line.startswith("ERROR: ")] or [str(error)]
            raise RuntimeFileError(f"{file.path} cannot be loaded by the LiteRT runtime: {'; '.join(reasons)}") from error


class Runner:
    """One text being read and written by one model. Not for several threads at once."""

    def __init__(self, file: ModelFile, model: Any, *, threads: int) -> None:
        """From a loaded CompiledModel; use `Runner.open`."""
        self.file = file
        self.threads = threads
        self._model = model
        self._caches = {name: model.create_input_buffer_by_name("decode", name) for name in file.decode.caches}
        self._decode = _Signature(file.decode, model, self._caches)
        self._prefill = {spec.length: _Signature(spec, model, self._caches) for spec in file.prefill}
        self._position = 0
        self._written = 0  # slots, counted from the text's beginning: of a padded call, the padding too
        self._empty = False  # the runtime's buffers hold anything at first
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

    @property
    def vocab_size(self) -> int:
        return self.file.vocab_size

    @property
    def cache_length(self) -> int:
        """S: the most tokens of one text, prompt and answer together."""
        return self.file.cache_length

    @property
    def prefill_lengths(self) -> tuple[int, ...]:
        """The prefill signatures' T, from the shortest."""
        return tuple(self._prefill)

    @property
    def position(self) -> int:
        """Tokens in the cache."""
        return self._position

    @property
    def most_rewound(self) -> int:
        """How far `rewind` may go back behind the furthest slot that was written, other than to 0: one call, where a layer keeps a ring."""
        whole = self.file.shortest_cache >= self.cache_length
        return self.cache_length if whole else max(self.prefill_lengths, default=1)

    def reset(self) -> None:
        """Begin a new text, in caches that are as empty as at first: not even an overflow of the last text can reach this one."""
        if not self._empty:
            for name, spec in self.file.decode.caches.items():
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

    def prefill(self, ids: Sequence[int]) -> None:
        """Reads all of `ids`, without their logits."""
        for _ in self._read(ids, self._prefill):
            pass

    def prefill_logits(self, ids: Sequence[int]) -> Logits:
        """Reads all of `ids`: the logits [n, V] after each. RuntimeFileError where the file's prefill signatures give none."""
        able = {length: signature for length, signature in self._prefill.items() if signature.has_logits}
        if not able:
            raise RuntimeFileError(
                f"{self.file.path}: its prefill signatures give no logits, so a text's likelihood cannot be read from it; "
                "export it with --prefill-logits"
            )
        parts = [signature.logits()[:used] for signature, used in self._read(ids, able)]
        return np.concatenate(parts) if parts else np.empty((0, self.vocab_size), np.float32)

    def step(self, token: int) -> Logits:
        """Reads one token: the logits [V] of the next."""
        for _ in self._read([token], {}):
            pass
        logits: Logits = self._decode.logits()[0]
        return logits

    def read_cache(self, name: str) -> NDArray[Any]:
        """A copy of one cache as it is now, in its own shape and type; slots that no token is in hold garbage."""
        spec = self.file.decode.caches[name]
        values: NDArray[Any] = self._caches[name].read(int(np.prod(spec.shape)), spec.dtype.type)
        return values.reshape(spec.shape)

    def close(self) -> None:
        """Frees the model. The runner cannot be used after it."""
        self._prefill.clear()
        self._caches.clear()
        del self._decode, self._model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read(self, ids: Sequence[int], prefill: dict[int, "_Signature"]) -> Iterator[tuple["_Signature", int]]:
        """Runs `ids` through the given prefill signatures and decode; after each call, the signature, and how many ids it took."""
        tokens = np.asarray(ids, np.int64)
        self.require_room(len(tokens))
        self._require_known(tokens)
        for length in split(len(tokens), lengths=tuple(prefill), room=self.cache_length - self._position):
            signature = self._decode if length == 1 else prefill[length]
            chunk, tokens = tokens[:length], tokens[length:]
            self._call(signature, chunk)
            yield signature, len(chunk)

    def _call(self, signature: "_Signature", ids: NDArray[np.int64]) -> None:
        """Runs a signature on ids that it has room for, at the position."""
        self._empty = False
        signature.run(ids, self._position, self._places(self._position, signature.spec.length))
        self._written = max(self._written, self._position + signature.spec.length)
        self._position += len(ids)

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


class _Signature:
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


def available_cores() -> int:
    """Cores that this process may use: two threads of one core count once, since they share the units that a model is run on."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
    cores = set()
    for cpu in cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.exists() else str(cpu))
    return min(len(cores), _quota())


def _quota() -> int:
    """The cores that the container's time amounts to; more threads than those wait on one another."""
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, round(int(quota) / int(period)))
    return len(os.sched_getaffinity(0))


@cache
def _environment() -> Any:
    """The runtime's environment, one for the process. It looks for plug-ins of other processors: in a folder that has none."""
    from ai_edge_litert.environment import Environment, EnvironmentOptions

    none = str(Path(__file__).parent)
    return Environment.create(options=EnvironmentOptions(runtime_path=none, compiler_plugin_path=none, dispatch_library_path=none))


@contextmanager
def _silenced() -> Iterator[Callable[[], list[str]]]:
    """Keeps LiteRT's log off the terminal, to which it writes past sys.stderr; yields what reads it.

    All of the process's descriptor 2 goes to a file meanwhile; what others wrote to it is passed on afterwards.
    """
    with TemporaryFile() as log:

        def lines() -> list[str]:
            log.seek(0)
            return log.read().decode(errors="replace").splitlines()

        saved = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            if others := [line for line in lines() if not line.startswith(_LOG_STARTS)]:
                os.write(2, ("\n".join(others) + "\n").encode())


_LOG_STARTS = ("VERBOSE: ", "INFO: ", "WARNING: ", "ERROR: ", "\u2514 ")
