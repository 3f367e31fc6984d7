"""What several suites of families share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.examples.references import Case, make_reference

Reference = Callable[[Case], tuple[Any, Path]]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A case's reference, and where it is saved: made once."""
    known: dict[str, tuple[Any, Path]] = {}

    def made(case: Case) -> tuple[Any, Path]:
        if str(case) not in known:
            directory = tmp_path_factory.mktemp("checkpoint")
            known[str(case)] = make_reference(case, directory), directory
        return known[str(case)]

    return made
