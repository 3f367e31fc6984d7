"""What registrations leave behind is taken back after each test: they are global, as the user's own are."""

from collections.abc import Iterator

import pytest

from flatlm.authoring.module_map import MODULE_MAP
from flatlm.authoring.user_code import PREFIX
from flatlm.utilities.configs.registry import ConfigBuilder


@pytest.fixture(autouse=True)
def registrations() -> Iterator[None]:
    before, classes = list(ConfigBuilder._builders), dict(MODULE_MAP)
    yield
    # Families and files are run once a process: what they have registered stays.
    kept = [each for each in ConfigBuilder._builders if each in before or each.__module__.startswith(("flatlm.", PREFIX))]
    ConfigBuilder._builders[:] = kept
    MODULE_MAP.clear()
    MODULE_MAP.update(classes)
