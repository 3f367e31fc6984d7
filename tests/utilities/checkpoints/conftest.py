"""An adapter and its base; a directory in shards."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.examples.references import Case, make_llama
from tests.utilities.checkpoints.adapters import copied, train
from tests.utilities.checkpoints.directories import tensor, write_index


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, and adapters `plain` and `dora` of it."""
    path = tmp_path_factory.mktemp("lora")
    train(make_llama(Case("base"), path / "base"), path / "plain")
    train(make_llama(Case("base"), path / "base"), path / "dora", use_dora=True)
    return path


@pytest.fixture
def adapter(original: Path, tmp_path: Path) -> Path:
    return copied(original / "plain", tmp_path / "adapter")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": tensor(3, 2, seed=1), "b": tensor(4, seed=2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"c": tensor(2, 2, seed=3)}, tmp_path / "model-00002-of-00002.safetensors")
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    write_index(tmp_path, {"a": first, "b": first, "c": second})
    return tmp_path
