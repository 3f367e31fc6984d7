"""The checkpoint directory: which files are read, what is no checkpoint, the fingerprint. Formats have their own tests."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.directory import Checkpoint, TensorRecord
from tests.utilities.checkpoints.directories import refusal, tensor, write_index


def test_single_file(tmp_path: Path) -> None:
    save_file({"w": tensor(3, 2).bfloat16()}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.directory == tmp_path
        assert dict(checkpoint.tensors) == {"w": TensorRecord("w", (3, 2), torch.bfloat16, tmp_path / "model.safetensors")}
        assert torch.equal(checkpoint.read("w"), tensor(3, 2).bfloat16())


def test_sharded_by_index(sharded: Path) -> None:
    save_file({"stray": tensor(1)}, sharded / "consolidated.safetensors")  # not in the index: not read
    with Checkpoint.open(str(sharded)) as checkpoint:
        assert set(checkpoint.tensors) == {"a", "b", "c"}
        assert checkpoint.tensors["c"].file.name == "model-00002-of-00002.safetensors"
        assert torch.equal(checkpoint.rows("a", 1, 3), tensor(3, 2, seed=1)[1:3])
        assert torch.equal(checkpoint.read("c"), tensor(2, 2, seed=3))


def test_files_without_an_index(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    with Checkpoint.open(sharded) as checkpoint:
        assert set(checkpoint.tensors) == {"a", "b", "c"}


@pytest.mark.parametrize("first", [0, 1])
def test_a_missing_shard_is_noticed_without_an_index(tmp_path: Path, first: int) -> None:
    for i in (first, first + 2):
        save_file({f"t{i}": tensor(1)}, tmp_path / f"model-0000{i}-of-00003.safetensors")
    message = refusal(tmp_path)
    assert f"but not model-0000{first + 1}-of-00003.safetensors; download all" in message
    save_file({"between": tensor(1)}, tmp_path / f"model-0000{first + 1}-of-00003.safetensors")
    Checkpoint.open(tmp_path).close()


def test_safetensors_are_preferred_and_one_file_to_an_index(sharded: Path) -> None:
    torch.save({"torch": tensor(1)}, sharded / "pytorch_model.bin")
    with Checkpoint.open(sharded) as checkpoint:
        assert "a" in checkpoint.tensors
    save_file({"single": tensor(1)}, sharded / "model.safetensors")
    with Checkpoint.open(sharded) as checkpoint:
        assert set(checkpoint.tensors) == {"single"}


def test_torch_files(tmp_path: Path) -> None:
    torch.save({"pt": tensor(1)}, tmp_path / "model.pt")
    torch.save({"pth": tensor(1)}, tmp_path / "other.pth")
    torch.save({"momentum": tensor(1)}, tmp_path / "optimizer.pt")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert set(checkpoint.tensors) == {"pt", "pth"}
    for i in (1, 2):
        torch.save({f"bin{i}": tensor(1)}, tmp_path / f"pytorch_model-0000{i}-of-00002.bin")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert set(checkpoint.tensors) == {"bin1", "bin2"}
    write_index(tmp_path, {"bin2": "pytorch_model-00002-of-00002.bin"}, "pytorch_model.bin.index.json")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert set(checkpoint.tensors) == {"bin2"}
    torch.save({"single": tensor(1)}, tmp_path / "pytorch_model.bin")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert set(checkpoint.tensors) == {"single"}


def test_links_are_followed_as_in_a_cache_of_snapshots(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    save_file({"a": tensor(3)}, blobs / "0123")
    (snapshot / "shard.safetensors").symlink_to("../../blobs/0123")
    write_index(blobs, {"a": "shard.safetensors"}, "4567")
    (snapshot / "model.safetensors.index.json").symlink_to("../../blobs/4567")
    with Checkpoint.open(snapshot) as checkpoint:
        assert torch.equal(checkpoint.read("a"), tensor(3))
        assert checkpoint.tensors["a"].file == snapshot / "shard.safetensors"


def test_missing_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nope").startswith(f"{tmp_path / 'nope'}: does not exist; give the directory")


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    save_file({"a": tensor(3)}, tmp_path / "model.safetensors")
    assert "model.safetensors: is not a directory; give the directory that holds it" in refusal(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("config.json", "download them next to config.json"),
        ("model.gguf", "model.gguf is of llama.cpp: get the same model's safetensors"),
        ("tf_model.h5", "tf_model.h5 is of TensorFlow"),
        ("optimizer.pt", "optimizer.pt is a training run's state: give the directory where the run saved its model"),
        ("rng_state_0.pth", "rng_state_0.pth is a training run's state"),
    ],
)
def test_no_weights(tmp_path: Path, name: str, hint: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "model.safetensors").mkdir()  # a directory of that name is no weights file
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: has no weights: neither model.safetensors")
    assert hint in message


def test_no_tensors_in_the_file(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    assert "model.safetensors: no tensors in it" in refusal(tmp_path)


def test_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("gone")
    assert "model.safetensors: is a link to a file that does not exist; download" in refusal(tmp_path)


def test_pipes_are_not_waited_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "model.safetensors").symlink_to("pipe")
    assert "model.safetensors: is not a regular file" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_git_lfs_pointer(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4400000000\n")
    message = refusal(tmp_path)
    assert f"{name}: is a Git LFS pointer, not the weights themselves; run `git lfs pull`" in message


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert f"{name}: is empty; download" in refusal(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    save_file({"a": tensor(3)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").chmod(0)
    assert "model.safetensors: cannot be opened: Permission denied" in refusal(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")
def test_nothing_stays_open_after_an_error(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError) as caught:  # kept: its traceback keeps what it refers to alive
        Checkpoint.open(sharded)
    still_open = [Path(f"/proc/self/fd/{fd.name}") for fd in Path("/proc/self/fd").iterdir()]
    assert not [link for link in still_open if link.is_symlink() and link.readlink().is_relative_to(sharded)]
    assert caught.value


def test_fingerprint_is_what_its_documentation_says(tmp_path: Path) -> None:
    save_file({"b": tensor(2000), "a": torch.tensor(1.0)}, tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    digest = hashlib.sha256()
    digest.update(json.dumps(["file", "model.safetensors", len(data), hashlib.sha256(data[:end]).hexdigest()]).encode() + b"\n")
    digest.update(b'["tensor", "a", "float32", [], 4]\n' + torch.tensor(1.0).numpy().tobytes())
    digest.update(b'["tensor", "b", "float32", [2000], 4096]\n' + tensor(2000).numpy().tobytes()[:4096])
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.fingerprint() == digest.hexdigest()


def test_fingerprint_does_not_depend_on_the_place_but_on_names_headers_and_samples(tmp_path: Path) -> None:
    def fingerprint(place: str, name: str, values: torch.Tensor, metadata: dict[str, str] | None = None) -> str:
        directory = tmp_path / place
        directory.mkdir()
        save_file({"w": values}, directory / name, metadata)
        with Checkpoint.open(directory) as checkpoint:
            return checkpoint.fingerprint()

    values = tensor(5000)
    original = fingerprint("1", "a.safetensors", values)
    assert fingerprint("2", "a.safetensors", values) == original
    assert fingerprint("3", "b.safetensors", values) != original
    assert fingerprint("4", "a.safetensors", values, {"x": "y"}) != original
    early, late = values.clone(), values.clone()
    early[1023] += 1
    late[1024] += 1
    assert fingerprint("5", "a.safetensors", early) != original
    assert fingerprint("6", "a.safetensors", late) == original  # as documented: only the first 4 KiB are sampled


def test_real_checkpoint(shared: Path) -> None:
    from safetensors import safe_open

    directory = shared / "checkpoints" / "stories260K"
    with Checkpoint.open(directory) as checkpoint, safe_open(directory / "model.safetensors", "pt") as reference:
        assert set(checkpoint.tensors) == set(reference.keys())
        for name in checkpoint.tensors:
            assert torch.equal(checkpoint.read(name), reference.get_tensor(name))
