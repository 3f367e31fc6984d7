"""Small JSON files that may hold anything."""

from pathlib import Path

import pytest

from flatlm.errors import CheckpointError, ConfigError
from flatlm.utilities.json_file import MAX_BYTES, read_json


def test_what_it_holds(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"ä": [1]}', "utf-8")
    assert read_json(file, ConfigError) == {"ä": [1]}
    file.write_text("[1]")
    assert read_json(file, ConfigError, list) == [1]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "holds a list, not an object; save it again"),
        (b" " * (MAX_BYTES + 1), f"is larger than {MAX_BYTES} bytes"),
    ],
)
def test_what_it_may_not(tmp_path: Path, content: bytes, complaint: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        read_json(file, CheckpointError, way_out="; save it again")
    assert str(caught.value).startswith(str(file)) and str(caught.value).endswith("; save it again")


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere cannot be read: No such file"):
        read_json(tmp_path / "nowhere", ConfigError)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a dict, not a list"):
        read_json(tmp_path / "a.json", ConfigError, list)
