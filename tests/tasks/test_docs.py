"""docs/tasks.md, executed."""

from pathlib import Path

import pytest

from tests.docs_blocks import ROOT, run_page


@pytest.mark.slow
def test_the_tutorial(tmp_path: Path) -> None:
    not_compared = ("flatlm predict ner", 'flatlm predict story.litertlm --text "the dog" --prompt')
    assert run_page(ROOT / "docs" / "tasks.md", tmp_path, not_compared=not_compared) == 2
