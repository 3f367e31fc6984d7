"""Fixtures for all tests."""

import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import compiles

# Tiny models: two test processes' threads, and those of what the tests start, would only wait on one another.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported to collect the tests, a million objects that stay, is not looked through for garbage, now or ever after."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each of pytest-xdist's workers begins with tests that lie together, which share fixtures; who is done first takes from the other."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


@pytest.fixture(scope="session", autouse=True)
def cache_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What FlatLM keeps for later runs is kept apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def shared_compiles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exports of one graph share its compiling, in all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    folder.mkdir(exist_ok=True)
    with compiles.sharing(compiles.Compiles(folder)):
        yield


@pytest.fixture
def fresh_compilers(shared_compiles: None) -> Iterator[None]:
    """Each export of the test has a compiler's process of its own, as the user's have."""
    with compiles.fresh():
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository, with small trained checkpoints; tests that ask for it are skipped without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "checkpoints").is_dir():
        pytest.skip("needs ../shared/checkpoints, which lies beside the repository")
    return folder
