"""Folders of long runs. (How an evaluation goes on from one: test_reference_cache.py.)"""

from pathlib import Path

import pytest

from flatlm.errors import OutputError
from flatlm.generative.evaluation.journal import work_folder


def test_a_folder_goes_when_its_run_has_finished_and_not_before(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), work_folder(tmp_path / "work", "run") as folder:
        assert folder == tmp_path / "work" / "run"
        (folder / "answers").write_text("so far")
        raise KeyboardInterrupt
    with work_folder(tmp_path / "work", "run") as folder:
        assert folder is not None and (folder / "answers").read_text() == "so far"
        with work_folder(tmp_path / "work", "run") as second:
            assert second is None, "another run of the same"
        assert (folder / "answers").exists()
        with work_folder(tmp_path / "work", "other") as other:
            assert other == tmp_path / "work" / "other"
    assert list((tmp_path / "work").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file")
    with (
        pytest.raises(OutputError, match=r"work/run cannot be written .*: choose another --work folder"),
        work_folder(tmp_path / "work", "run"),
    ):
        pass
