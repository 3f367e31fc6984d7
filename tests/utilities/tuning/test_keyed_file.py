"""A file of what was measured: kept for its key, whole, and left aside where it is of no use."""

import json
from pathlib import Path

import pytest

from flatlm.utilities.tuning.keyed_file import KeyedFile


def test_figures_of_another_text_or_checkpoint_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    KeyedFile(path, {"text": "a"}, "kl").add({"embedding.weight": {"dynamic_int8": 1.0}})
    assert KeyedFile(path, {"text": "a"}, "kl").values
    assert not KeyedFile(path, {"text": "b"}, "kl").values
    path.write_text("{not json")
    assert not KeyedFile(path, {"text": "a"}, "kl").values


def test_what_is_added_joins_what_was_kept_for_a_key_that_json_changes(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    key = {"lengths": (16, 128)}  # a list, once it was written
    KeyedFile(path, key, "files").add({"a": 1})
    KeyedFile(path, key, "files").add({"b": 2})
    assert KeyedFile(path, key, "files").values == {"a": 1, "b": 2}
    assert json.loads(path.read_text()) == {"key": {"lengths": [16, 128]}, "files": {"a": 1, "b": 2}}


@pytest.mark.parametrize("content", ["", "[]", '{"kl": {}}', '{"key": {}}', '{"key": {}, "kl": 3}', '{"key": {}, "kl": ["a"]}', "\xff"])
def test_a_file_of_no_use_is_as_good_as_none(content: str, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(content, "latin-1")
    assert KeyedFile(path, {}, "kl").values == {}
