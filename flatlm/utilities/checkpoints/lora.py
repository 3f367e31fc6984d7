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
import threading
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType, TracebackType

import torch

from flatlm.errors import CheckpointError
from flatlm.layers.config import ModelConfig
from flatlm.quantize.carried import IntegerRows, StoredIntegers
from flatlm.utilities.checkpoints import safetensors_file, torch_file
from flatlm.utilities.checkpoints.directory import Checkpoint
from flatlm.utilities.checkpoints.files import TensorRecord, WeightsFile
from flatlm.utilities.checkpoints.lora_config import AdapterSettings
from flatlm.utilities.checkpoints.lora_plan import Names, Product, plan_changes
from flatlm.utilities.checkpoints.quantized import IntegerStore
from flatlm.utilities.checkpoints.store import TensorStore

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_CHUNK = 1 << 22


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
            self._changes = plan_changes(base, self._stored, self._settings)
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
        for name in Names(self._base.tensors).find(embedding):
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

    def _add(self, values: torch.Tensor, product: Product, start: int, stop: int) -> torch.Tensor:
        a, b = self._factor(product.a), self._factor(product.b)
        if product.transposed:
            return torch.addmm(values, a[:, start:stop].T, b.T, alpha=product.scale)
        return torch.addmm(values, b[start:stop], a, alpha=product.scale)

    def _rescale(self, values: torch.Tensor, name: str, product: Product, start: int, stop: int) -> torch.Tensor:
        """DoRA: to the magnitude that each output has, which is a row, or in a transposed weight a column."""
        assert product.magnitude is not None
        magnitude = self._factor(product.magnitude).flatten()
        if product.transposed:
            return values * (magnitude / self._column_norms(name, product))
        lengths: torch.Tensor = torch.linalg.vector_norm(values, dim=1)
        return values * (magnitude[start:stop] / lengths)[:, None]

    def _column_norms(self, name: str, product: Product) -> torch.Tensor:
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
