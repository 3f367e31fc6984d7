"""The tutorials are executed: what they show is what a reader gets."""

from pathlib import Path

import pytest

from tests.docs_blocks import ROOT, run_page


@pytest.mark.slow
def test_custom_models(tmp_path: Path) -> None:
    assert run_page(ROOT / "docs" / "custom_models.md", tmp_path, not_compared=("flatlm generate",), processes=("verify",)) >= 5
