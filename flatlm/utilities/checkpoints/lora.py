"""A LoRA adapter, as PEFT saves it, merged into its base checkpoint while rows are read.

The formulas are PEFT's `merge_and_unload` (https://huggingface.co/docs/peft, package reference, LoRA), in float32:

- W + s B A, with s = alpha / r, or alpha / sqrt(r) with use_rslora (https://arxiv.org/abs/2312.03732)
- DoRA (https://arxiv.org/abs/2402.09353): that, with each output row scaled to the length that the magnitude vector gives
- an embedding, and a weight that is stored [in, out] as GPT-2's are, take the transposed product; lora_bias adds s b to the bias
- tensors stored whole (modules_to_save, biases, resized embeddings) replace the base's

A few rows of B and the whole of A make the rows that are asked for: no merged weight is ever whole in memory.
"""

from __future__ import annotations

import hashlib
import math
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import NoReturn

import torch

from flatlm.errors import CheckpointError
from flatlm.layers.config import ModelConfig
from flatlm.quantize.carried import IntegerRows, StoredIntegers
from flatlm.utilities.checkpoints import safetensors_file, torch_file
from flatlm.utilities.checkpoints.directory import Checkpoint
from flatlm.utilities.checkpoints.files import TensorRecord, WeightsFile
from flatlm.utilities.checkpoints.lora_config import SUPPORTED, AdapterSettings
from flatlm.utilities.checkpoints.quantized import IntegerStore
from flatlm.utilities.checkpoints.store import TensorStore

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_PART = re.compile(
    r"(?P<module>.+?)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?P<bias>\.bias|\.weight)?"
)
_WRAPPERS = frozenset(("base_model", "model", "module", "transformer", "language_model", "text_model", "backbone", "gpt_neox"))
"""First parts of names, which differ between a checkpoint and the class that an adapter was trained with."""
_HEAD = "lm_head.weight"
_CHUNK = 1 << 22


@dataclass(frozen=True)
class _Product:
    """scale * b @ a, or its transpose; `magnitude` names DoRA's vector."""

    a: str
    b: str
    scale: float
    transposed: bool
    magnitude: str | None = None


@dataclass(frozen=True)
class _Change:
    """How a base tensor differs: replaced by the adapter's `whole`, then the product or scale * `shift` added."""

    whole: str | None = None
    product: _Product | None = None
    shift: tuple[str, float] | None = None


class LoraStore:
    """A base checkpoint with an adapter merged into it. Owns both: closing closes them."""

    def __init__(self, base: TensorStore, adapter: Path) -> None:
        """Reads the adapter's configuration and all its factors. Raises CheckpointError; then the base is still open."""
        self._base = base
        self._settings = AdapterSettings.read(_require_directory(adapter) / "adapter_config.json")
        self._stored = _open_weights(adapter)
        self._lock = threading.Lock()
        self._norms: dict[str, torch.Tensor] = {}
        self._tied: dict[str, str] = {}
        self._factor = lru_cache(maxsize=8)(self._read_factor)
        try:
            self._index = _Names(base.tensors)
            self._changes = self._plan()
        except BaseException:
            self._stored.close()
            raise
        records = dict(base.tensors)
        for name, change in self._changes.items():
            record = replace(self._stored.tensors[change.whole], name=name) if change.whole else records[name]
            records[name] = record if change.product is None and change.shift is None else replace(record, dtype=torch.float32)
        self.tensors: Mapping[str, TensorRecord] = MappingProxyType(records)

    @property
    def directory(self) -> Path:
        return self._base.directory

    @property
    def changed(self) -> tuple[str, ...]:
        """The base's tensors that the adapter changes."""
        return tuple(self._changes)

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop), merged: float32 where anything was added, else as stored."""
        change = self._changes.get(name)
        if change is None:
            return self._base.rows(self._tied.get(name, name), start, stop)
        values = self._base.rows(name, start, stop) if change.whole is None else self._stored.rows(change.whole, start, stop)
        if change.shift is not None:
            shift, scale = change.shift
            values = values.float() + scale * self._factor(shift)[start:stop]
        if change.product is not None:
            values = self._add(values.float(), change.product, start, stop)
            if change.product.magnitude is not None:
                values = self._rescale(values, name, change.product, start, stop)
        return values

    def read(self, name: str) -> torch.Tensor:
        if name not in self._changes:
            return self._base.read(self._tied.get(name, name))
        return self.rows(name, 0, self.tensors[name].shape[0])

    def stored_integers(self, name: str) -> StoredIntegers | None:
        """The base's, which no scheme can hold where the adapter changes the weight."""
        if not isinstance(self._base, IntegerStore):
            return None
        stored = self._base.stored_integers(self._tied.get(name, name))
        return stored if stored is None or name not in self._changes else replace(stored, obstacle="an adapter was merged into it")

    def integer_rows(self, name: str, start: int, stop: int) -> IntegerRows:
        assert isinstance(self._base, IntegerStore) and name not in self._changes
        return self._base.integer_rows(self._tied.get(name, name), start, stop)

    def zero_biases(self) -> frozenset[str]:
        return self._base.zero_biases().difference(self._changes) if isinstance(self._base, IntegerStore) else frozenset()

    def fingerprint(self) -> str:
        return hashlib.sha256(f"lora {self._base.fingerprint()} {self.adapter_facts()['fingerprint']}".encode()).hexdigest()

    def adapter_facts(self) -> dict[str, str]:
        """For a manifest: the directory's name, and a fingerprint of its weights, as a checkpoint's is made, and its configuration."""
        digest = hashlib.sha256(self._stored.fingerprint().encode() + self._settings.source.read_bytes())
        return {"name": self._stored.directory.resolve().name, "fingerprint": digest.hexdigest()}

    def vocabulary(self, embedding: str) -> int | None:
        """Rows of the embedding's tensor, where the adapter brings one of another size than the base's; else None."""
        for name in self._index.find(embedding):
            if self.tensors[name].shape != self._base.tensors[name].shape:
                return self.tensors[name].shape[0]
        return None

    def fit(self, config: ModelConfig, *, embedding: str, head: str) -> ModelConfig:
        """The merged model's configuration: its vocabulary, and whether its head is still tied to its embedding.

        PEFT trains the two apart, and its merge, which adds to the one tensor of both, is not what was trained. So where the
        adapter changes either, `head` is a tensor of its own from now on.
        """
        if config.tied_head and not {embedding, head}.isdisjoint(self._changes):
            if head not in self.tensors:
                self._tied[head] = embedding
                self.tensors = MappingProxyType({**self.tensors, head: replace(self._base.tensors[embedding], name=head)})
            config = replace(config, tied_head=False)
        rows = self.vocabulary(embedding)
        return config if rows is None else replace(config, vocab_size=rows)

    def close(self) -> None:
        self._stored.close()
        self._base.close()

    def __enter__(self) -> LoraStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------------------- arithmetic

    def _add(self, values: torch.Tensor, product: _Product, start: int, stop: int) -> torch.Tensor:
        a, b = self._factor(product.a), self._factor(product.b)
        if product.transposed:
            return torch.addmm(values, a[:, start:stop].T, b.T, alpha=product.scale)
        return torch.addmm(values, b[start:stop], a, alpha=product.scale)

    def _rescale(self, values: torch.Tensor, name: str, product: _Product, start: int, stop: int) -> torch.Tensor:
        """DoRA: to the magnitude that each output has, which is a row, or in a transposed weight a column."""
        assert product.magnitude is not None
        magnitude = self._factor(product.magnitude).flatten()
        if product.transposed:
            return values * (magnitude / self._column_norms(name, product))
        lengths: torch.Tensor = torch.linalg.vector_norm(values, dim=1)
        return values * (magnitude[start:stop] / lengths)[:, None]

    def _column_norms(self, name: str, product: _Product) -> torch.Tensor:
        with self._lock:
            if name not in self._norms:
                rows, columns = self.tensors[name].shape
                step, whole = max(1, _CHUNK // columns), self._changes[name].whole
                total = torch.zeros(columns, dtype=torch.float64)
                for start in range(0, rows, step):
                    stop = min(start + step, rows)
                    values = self._base.rows(name, start, stop) if whole is None else self._stored.rows(whole, start, stop)
                    total += self._add(values.float(), product, start, stop).double().square().sum(0)
                self._norms[name] = total.sqrt().float()
            return self._norms[name]

    def _read_factor(self, name: str) -> torch.Tensor:
        return self._stored.read(name).float()

    # ------------------------------------------------------------------------------------------------------------------- plan

    def _wrong(self, tensor: str, what: str) -> NoReturn:
        raise CheckpointError(f"{self._stored.tensors[tensor].file}: tensor {tensor!r} {what}")

    def _plan(self) -> dict[str, _Change]:
        """Every tensor of the adapter finds its place, and every module that it should change has its tensors."""
        modules, wholes = dict[str, dict[str, str]](), dict[str, str]()
        for name, record in self._stored.tensors.items():
            if record.unsupported is None and not record.dtype.is_floating_point:
                self._wrong(name, f"is {record.dtype}, not a floating-point type; train or save the adapter again")
            plain = name.removeprefix("base_model.model.").replace(".modules_to_save", "").replace(".default", "")
            if match := _PART.fullmatch(plain):
                kind = match["kind"] + (".bias" if match["bias"] == ".bias" else "")
                self._note(modules.setdefault(match["module"], {}), kind, name)
            elif re.search(r"\.(lora_|token_adapter|original_module|parametrizations)", plain):
                self._wrong(name, f"is of a kind that FlatLM does not merge; {SUPPORTED}")
            else:
                self._note(wholes, plain.replace(".base_layer.", "."), name)
        if not modules and not wholes:
            raise CheckpointError(f"{self._stored.directory}: no tensors in it; save the adapter again")
        changes = dict[str, _Change]()
        for plain, name in wholes.items():
            place = self._whole_place(plain, name)
            if place in changes:
                self._wrong(name, f"is meant for {place}, as {changes[place].whole!r} is; save the adapter again")
            changes[place] = _Change(whole=name)
        for module, names in modules.items():
            first = next(iter(names.values()))
            weight = _HEAD if _is_head(module, changes) else self._place(f"{module}.weight", first)
            before = changes.get(weight, _Change())
            if before.product is not None:
                self._wrong(first, f"is meant for {weight}, as {before.product.a!r} is; save the adapter again")
            shape = self._stored.tensors[before.whole].shape if before.whole else self._base.tensors[weight].shape
            changes[weight] = replace(before, product=self._product(module, weight, shape, names))
            if (bias := names.get("lora_B.bias")) is not None:
                place = self._place(f"{module}.bias", bias)
                self._require_shape(bias, self._base.tensors[place].shape)
                changes[place] = replace(changes.get(place, _Change()), shift=(bias, self._settings.scale_of(module)))
        self._require_complete(set(modules), set(wholes))
        return changes

    def _note(self, place: dict[str, str], key: str, name: str) -> None:
        if key in place:
            self._wrong(name, f"and {place[key]!r} are the same one; save the adapter again")
        place[key] = name

    def _product(self, module: str, weight: str, shape: tuple[int, ...], names: dict[str, str]) -> _Product:
        settings, stored = self._settings, self._stored.tensors
        embedding = "lora_embedding_A" in names or "lora_embedding_B" in names
        kinds = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        for kind, other in (kinds, kinds[::-1]):
            if kind not in names:
                present = names.get(other) or next(iter(names.values()))
                self._wrong(present, f"has no {kind} beside it; the file is incomplete: save the adapter again")
        for kind, key, asked in (
            ("lora_magnitude_vector", "use_dora", settings.dora),
            ("lora_B.bias", "lora_bias", settings.lora_bias and not embedding),
        ):
            if asked and kind not in names:
                self._wrong(names[kinds[0]], f"has no {kind} beside it, which {key} asks for; save the adapter again")
            if kind in names and not asked:
                self._wrong(names[kind], f"does not go with {settings.source.name}, where {key} is off; use files of one adapter")
        if extra := sorted(set(names) - {*kinds, "lora_magnitude_vector", "lora_B.bias"}):
            self._wrong(names[extra[0]], f"is of a kind that FlatLM does not merge; {SUPPORTED}")
        a, b = names[kinds[0]], names[kinds[1]]
        for name in (a, b):
            if len(stored[name].shape) != 2:
                self._wrong(name, f"has shape {list(stored[name].shape)}; FlatLM merges matrices, two-dimensional ones only")
        if len(shape) != 2:
            self._wrong(a, f"belongs to {weight} of shape {list(shape)}; FlatLM merges into matrices, two-dimensional ones only")
        transposed = embedding or self._is_transposed(weight, shape, stored[a].shape[1], stored[b].shape[0])
        rank, outputs, inputs = settings.rank_of(module), shape[transposed], shape[not transposed]
        if stored[a].shape[0] != rank or stored[b].shape[1] != rank:
            name = a if stored[a].shape[0] != rank else b
            self._wrong(
                name,
                f"has shape {list(stored[name].shape)}, but {settings.source.name} gives {module} rank {rank}; use files of one adapter",
            )
        self._require_shape(a, (rank, inputs))
        self._require_shape(b, (outputs, rank))
        magnitude = names.get("lora_magnitude_vector")
        if magnitude is not None and math.prod(stored[magnitude].shape) != outputs:
            self._require_shape(magnitude, (outputs,))
        for name in names.values():
            if not torch.isfinite(self._factor(name)).all():
                self._wrong(name, "has values that are not finite (NaN or infinity); train or save the adapter again")
        return _Product(a, b, settings.scale_of(module), transposed, magnitude)

    def _is_transposed(self, weight: str, shape: tuple[int, ...], inputs: int, outputs: int) -> bool:
        """Whether a weight is stored [in, out]. Shapes say it; of a square one, the base's other weights or the configuration does.

        Only weights with a bias can be (transformers' Conv1D), and a model has them in its layers throughout.
        """
        if shape == (outputs, inputs) and inputs != outputs:
            return False
        bias = weight.removesuffix("weight") + "bias"
        if shape == (inputs, outputs) and inputs != outputs:
            return True
        if bias not in self._base.tensors:
            return False
        for name, record in self._base.tensors.items():
            other = self._base.tensors.get(name.removesuffix("weight") + "bias")
            if name.endswith(".weight") and other and len(record.shape) == 2 and record.shape[0] != record.shape[1] and _layer(name):
                return other.shape == record.shape[1:]
        return self._settings.transposed

    def _require_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if (found := self._stored.tensors[name].shape) != shape:
            self._wrong(name, f"has shape {list(found)}, but the base asks for {list(shape)}; give the base that it was trained on")

    def _whole_place(self, plain: str, name: str) -> str:
        """The base's tensor that one of the adapter replaces. An embedding or a head may have other rows: the vocabulary's size."""
        if _canonical(plain) == _HEAD and not self._index.find(plain):
            return _HEAD  # of a base whose head is tied to its embedding
        place = self._place(plain, name)
        found, shape = self._stored.tensors[name].shape, self._base.tensors[place].shape
        if not (len(found) == len(shape) == 2 and found[1] == shape[1] and not _layer(place)):
            self._require_shape(name, shape)
        return place

    def _place(self, plain: str, name: str) -> str:
        found = self._index.find(plain)
        if len(found) == 1:
            return found[0]
        if found:
            self._wrong(name, f"could be meant for {' or '.join(found)} of {self.directory}; rename it as the base does")
        if _canonical(plain) == _HEAD:
            self._wrong(
                name,
                f"is for the head, whose own weights are neither in the adapter nor in {self.directory}, where it is tied to the "
                "embedding; save the adapter again with save_embedding_layers=True",
            )
        if plain.endswith(".bias"):
            self._wrong(name, f"is a bias, which {self.directory} does not have for it; merge it with PEFT, into a model that has")
        self._wrong(name, f"matches no tensor of {self.directory}; give the base that the adapter was trained on")

    def _require_complete(self, modules: set[str], wholes: set[str]) -> None:
        """What the configuration names and the base has, the adapter must bring: PEFT itself leaves it as it was."""
        bases = {name.removesuffix(".weight") for name in self._base.tensors if name.endswith(".weight")}
        places = {name.removesuffix(".weight") for module in modules for name in self._index.find(f"{module}.weight")}
        replaced = {found for name in wholes for found in self._index.find(name)}
        for target in self._settings.targets if self._settings.every_layer else ():
            expected = {name for name in bases if name == target or name.endswith(f".{target}")}
            if missing := sorted(expected - places):
                raise CheckpointError(
                    f"{self._stored.directory}: has no tensors for {', '.join(missing[:5])}, though {self._settings.source.name} names "
                    f"{target} in target_modules; save the adapter again, or give the base that it was trained on"
                )
        for module in self._settings.saved:
            expected = {name for name in self._base.tensors if f".{module}." in f".{name}"}
            if missing := sorted(expected - replaced):
                raise CheckpointError(
                    f"{self._stored.directory}: has no {', '.join(missing[:5])}, though {self._settings.source.name} names "
                    f"{module} in modules_to_save; save the adapter again"
                )


class _Names:
    """Finds a base's tensors by names that may begin otherwise."""

    def __init__(self, tensors: Mapping[str, TensorRecord]) -> None:
        self._tensors = tensors
        self._by_end: dict[str, list[str]] = {}
        for name in tensors:
            self._by_end.setdefault(_canonical(name), []).append(name)

    def find(self, name: str) -> list[str]:
        return [name] if name in self._tensors else self._by_end.get(_canonical(name), [])


def _is_head(module: str, changes: Mapping[str, _Change]) -> bool:
    """Whether the adapter itself has stored the weights of the head that it changes, as PEFT does."""
    return _canonical(f"{module}.weight") == _HEAD and _HEAD in changes


def _canonical(name: str) -> str:
    parts = name.split(".")
    while len(parts) > 2 and parts[0] in _WRAPPERS:
        parts = parts[1:]
    return ".".join(parts)


def _layer(name: str) -> bool:
    return any(part.isdecimal() for part in name.split("."))


def _require_directory(adapter: Path) -> Path:
    if not adapter.is_dir():
        what = "is not a directory" if adapter.exists() else "does not exist"
        raise CheckpointError(f"{adapter}: {what}; give the directory that holds adapter_config.json and {WEIGHTS[0]}")
    if not (adapter / "adapter_config.json").is_file():
        raise CheckpointError(f"{adapter}: has no adapter_config.json, so PEFT did not save an adapter here; save it with save_pretrained")
    return adapter


def _open_weights(adapter: Path) -> Checkpoint:
    path = next((adapter / name for name in WEIGHTS if (adapter / name).exists()), None)
    if path is None:
        raise CheckpointError(f"{adapter}: has neither {' nor '.join(WEIGHTS)}; download them next to adapter_config.json")
    file = WeightsFile(path)
    try:
        header, found = (safetensors_file if path.suffix == ".safetensors" else torch_file).read_header(file)
    except BaseException:
        file.close()
        raise
    return Checkpoint(adapter, [file], [header], {entry.record.name: entry for entry in found})
