import shutil
from pathlib import Path

from tests.docs_blocks import ROOT, run_page


def test_the_page_does_what_it_shows(demo_file: Path, tmp_path: Path) -> None:
    """docs/serving.md, with the export that the tests share in place of its own."""
    shutil.copy(demo_file, tmp_path / "story.litertlm")
    run_page(ROOT / "docs" / "serving.md", tmp_path, not_run=["flatlm export"])
