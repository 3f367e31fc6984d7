"""A small Llama; what registrations leave behind is taken back after each test: they are global, as the user's own are."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flatlm.authoring.module_map import MODULE_MAP
from flatlm.authoring.user_code import PREFIX
from flatlm.utilities.configs.registry import ConfigBuilder
from tests.authoring.checkpoints import llama


@pytest.fixture(autouse=True)
def registrations() -> Iterator[None]:
    before, classes = list(ConfigBuilder._builders), dict(MODULE_MAP)
    yield
    # Families and files are run once a process: what they have registered stays.
    kept = [each for each in ConfigBuilder._builders if each in before or each.__module__.startswith(("flatlm.", PREFIX))]
    ConfigBuilder._builders[:] = kept
    MODULE_MAP.clear()
    MODULE_MAP.update(classes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llama")
    llama(directory)
    return directory


@pytest.fixture
def checkpoint(made: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    for file in made.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    return directory
