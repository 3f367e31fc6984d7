"""An adapter and its base."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.references import Case, make_llama
from tests.utilities.checkpoints.adapters import copied, train


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
