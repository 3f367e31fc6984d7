"""docs/registering.md is true: its files are written, its programs and commands are run."""

from pathlib import Path

import pytest

from tests.docs_blocks import ROOT, run_page


@pytest.mark.slow
def test_the_tutorial_of_registering(tmp_path: Path) -> None:
    assert run_page(ROOT / "docs" / "registering.md", tmp_path) == 4
