"""Fixtures for all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tiny models: two test processes' threads would only wait on one another


@pytest.fixture(scope="session", autouse=True)
def cache_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What FlatLM keeps for later runs is kept apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository, with small trained checkpoints; tests that ask for it are skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "checkpoints").is_dir():
        pytest.skip("needs ../shared/checkpoints, which lies beside the repository")
    return folder
