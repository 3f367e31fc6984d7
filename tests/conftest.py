"""Fixtures for all tests."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tiny models: two test processes' threads would only wait on one another


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository, with small trained checkpoints; tests that ask for it are skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "checkpoints").is_dir():
        pytest.skip("needs ../shared/checkpoints, which lies beside the repository")
    return folder
