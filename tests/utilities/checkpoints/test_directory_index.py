"""Indexes of sharded checkpoints: what they may name, and what is said where they are wrong."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flatlm.utilities.checkpoints.directory import Checkpoint
from tests.utilities.checkpoints.directories import refusal, tensor, write_index


def test_index_names_a_missing_file(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    message = refusal(sharded)
    assert "index.json: names files that are not there: model-00002-of-00002.safetensors; download them too" in message


def test_index_names_a_tensor_that_its_shard_lacks(sharded: Path) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    write_index(sharded, {"a": second, "b": first, "c": second, "d": first})
    message = refusal(sharded)
    assert f"index.json: disagrees with its files: 'a' is not in {second} but in {first}, 'd' is not in {first};" in message


def test_the_same_tensor_in_two_files(sharded: Path) -> None:
    save_file({"c": tensor(2, 2), "a": tensor(3, 2)}, sharded / "model-00002-of-00002.safetensors")
    for _ in range(2):
        message = refusal(sharded)
        assert "tensor 'a' is in two files, model-00001-of-00002.safetensors and model-00002-of-00002.safetensors; keep" in message
        (sharded / "model.safetensors.index.json").unlink(missing_ok=True)  # and so without an index


def test_a_tensor_that_the_index_does_not_name_is_listed(sharded: Path) -> None:
    first = "model-00001-of-00002.safetensors"
    write_index(sharded, {"a": first})
    with Checkpoint.open(sharded) as checkpoint:
        assert set(checkpoint.tensors) == {"a", "b"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("\xff", "is not JSON"),
        ("[]", "has no weight_map"),
        ("{}", "has no weight_map"),
        ('{"weight_map": []}', "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": {"a": 1}}', "has no weight_map"),
        ('{"weight_map": {"a": null}}', "has no weight_map"),
    ],
)
def test_bad_index(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="latin-1")
    message = refusal(tmp_path)
    assert f"index.json: {complaint}" in message
    assert "download it again" in message


def test_a_huge_index_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flatlm.utilities.checkpoints.directory.MAX_INDEX", 20)
    write_index(tmp_path, {"a": "b"})
    assert "is larger than 20 bytes" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../out.safetensors", "sub/../../out.safetensors", "..", "", ".", "a//b", "C:\\x", "..\\x", "C:x", "a\0b"]
)
def test_no_path_of_an_index_leaves_the_directory(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    save_file({"secret": tensor(1)}, tmp_path / "out.safetensors")
    write_index(directory, {"secret": name})
    message = refusal(directory)
    assert f"names the file {name!r}, which is not plainly inside the checkpoint's directory" in message


def test_an_index_may_name_a_subdirectory(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    save_file({"a": tensor(3)}, tmp_path / "shards" / "..odd..safetensors")
    write_index(tmp_path, {"a": "shards/..odd..safetensors"})
    with Checkpoint.open(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.read("a"), tensor(3))
        assert len(checkpoint.fingerprint()) == 64
