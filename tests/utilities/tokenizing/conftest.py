"""Tokenizers that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from tests.utilities.tokenizing.made_tokenizers import MAKERS


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: make().to_str() for name, make in MAKERS.items()}


@pytest.fixture(scope="session")
def loaded(made: dict[str, str], shared: Path) -> dict[str, Tokenizer]:
    every = {name: Tokenizer.from_bytes("hf", data.encode()) for name, data in made.items()}
    every["sentencepiece"] = Tokenizer.from_bytes(
        "sentencepiece", (shared / "checkpoints" / "stories260K" / "tokenizer.model").read_bytes()
    )
    return every
