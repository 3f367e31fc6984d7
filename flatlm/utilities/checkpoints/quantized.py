"""Quantized Hugging Face checkpoints, seen as any other: a store over a store, in which each quantized weight is one tensor of floats.

What config.json says under `quantization_config` is honoured or refused by name. The integers themselves can be asked for too, so that an
exported file can keep them (quantize/carried.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Protocol, runtime_checkable

import torch

from flatlm.errors import CheckpointError, ConfigError
from flatlm.quantize.carried import IntegerRows, StoredIntegers
from flatlm.utilities.checkpoints.awq import open_awq
from flatlm.utilities.checkpoints.compressed_tensors import open_compressed_tensors
from flatlm.utilities.checkpoints.files import TensorRecord
from flatlm.utilities.checkpoints.gptq import open_gptq
from flatlm.utilities.checkpoints.packed import AGAIN, Opener, QuantizedMatrix
from flatlm.utilities.checkpoints.store import TensorStore
from flatlm.utilities.checkpoints.torchao import open_torchao
from flatlm.utilities.configs.config_reader import ConfigReader

KEY = "quantization_config"
METHODS: Mapping[str, Opener] = MappingProxyType(
    {"gptq": open_gptq, "awq": open_awq, "compressed-tensors": open_compressed_tensors, "torchao": open_torchao}
)


@runtime_checkable
class IntegerStore(TensorStore, Protocol):
    """A store whose tensors may be stored as integers."""

    def stored_integers(self, name: str) -> StoredIntegers | None:
        """What is stored of a tensor; None for one of floats."""
        ...

    def integer_rows(self, name: str, start: int, stop: int) -> IntegerRows:
        """Rows [start, stop) of a tensor that is stored as integers."""
        ...

    def zero_biases(self) -> frozenset[str]:
        """Biases of quantized weights that are zeros: quantizers write them for models that have none."""
        ...


def is_quantized(directory: Path) -> bool:
    """Does the checkpoint's config.json say that its weights are quantized?"""
    return (directory / "config.json").is_file() and ConfigReader.from_directory(directory).has(KEY)


def open_quantized(store: TensorStore) -> TensorStore:
    """The store itself, or a view of it without integers where its config.json says that it is quantized. Closes it on an error.

    Raises ConfigError for settings that are not supported, CheckpointError for tensors that do not fit them.
    """
    try:
        settings = ConfigReader.from_directory(store.directory).nested(KEY) if is_quantized(store.directory) else None
        if settings is None:
            _refuse_unexplained(store)
            return store
        opener: Opener = settings.choice("quant_method", METHODS)
        return QuantizedCheckpoint(store, opener(store, settings), settings.values)
    except BaseException:
        store.close()
        raise


class QuantizedCheckpoint:
    """The tensors of a quantized checkpoint: those of `store`, but its quantized weights as float32 [out, in]."""

    def __init__(self, store: TensorStore, matrices: Iterable[QuantizedMatrix], settings: Mapping[str, Any]) -> None:
        """`settings`: what the matrices were read by, for the fingerprint. Raises CheckpointError where two of them clash."""
        self._store, self._settings = store, settings
        self._matrices = {matrix.name: matrix for matrix in matrices}
        hidden = {member for matrix in self._matrices.values() for member in matrix.members}
        tensors = {name: record for name, record in store.tensors.items() if name not in hidden}
        for name, matrix in self._matrices.items():
            if name in tensors:
                raise CheckpointError(f"{store.directory}: has both the tensor {name} and {matrix.members[0]}, its quantized form; {AGAIN}")
            tensors[name] = TensorRecord(name, matrix.shape, torch.float32, matrix.file)
        self.tensors: Mapping[str, TensorRecord] = MappingProxyType(tensors)

    @property
    def directory(self) -> Path:
        return self._store.directory

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        matrix = self._matrices.get(name)
        if matrix is None:
            return self._store.rows(name, start, stop)
        _check_rows(matrix, start, stop)
        return matrix.rows(start, stop)

    def read(self, name: str) -> torch.Tensor:
        matrix = self._matrices.get(name)
        return self._store.read(name) if matrix is None else matrix.rows(0, matrix.shape[0])

    def stored_integers(self, name: str) -> StoredIntegers | None:
        matrix = self._matrices.get(name)
        return None if matrix is None else matrix.stored_integers()

    def integer_rows(self, name: str, start: int, stop: int) -> IntegerRows:
        matrix = self._matrices[name]
        _check_rows(matrix, start, stop)
        return matrix.integer_rows(start, stop)

    def zero_biases(self) -> frozenset[str]:
        biases = (f"{name.removesuffix('weight')}bias" for name in self._matrices)
        return frozenset(bias for bias in biases if bias in self.tensors and not bool(self._store.read(bias).any()))

    def fingerprint(self) -> str:
        """As the store's, with what config.json says of the quantization."""
        settings = json.dumps(self._settings, sort_keys=True)
        return hashlib.sha256(f"{self._store.fingerprint()}\n{settings}".encode()).hexdigest()

    def close(self) -> None:
        self._store.close()

    def __enter__(self) -> QuantizedCheckpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _refuse_unexplained(store: TensorStore) -> None:
    packed = next((name for name in store.tensors if name.endswith((".qweight", ".weight_packed"))), None)
    if packed is not None:
        raise ConfigError(
            f"{store.directory / 'config.json'}: has no {KEY}, though tensor {packed} of {store.tensors[packed].file} is quantized; put "
            f"the contents of quantize_config.json (GPTQ) or quant_config.json (AWQ) there under {KEY}, with quant_method"
        )


def _check_rows(matrix: QuantizedMatrix, start: int, stop: int) -> None:
    if not 0 <= start <= stop <= matrix.shape[0]:
        raise ValueError(f"{matrix.name}: rows [{start}, {stop}) are not within its {matrix.shape[0]} rows")
