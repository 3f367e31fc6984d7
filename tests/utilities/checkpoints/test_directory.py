"""The checkpoint directory: which files are read, indexes, rows, the fingerprint. Formats have their own tests."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.directory import Checkpoint, TensorRecord


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    return str(caught.value)


def tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write_index(directory: Path, weight_map: object, name: str = "model.safetensors.index.json") -> Path:
    path = directory / name
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": tensor(3, 2, seed=1), "b": tensor(4, seed=2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"c": tensor(2, 2, seed=3)}, tmp_path / "model-00002-of-00002.safetensors")
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    write_index(tmp_path, {"a": first, "b": first, "c": second})
    return tmp_path


# ------------------------------------------------------------------------------------------------------------------ which files


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


# --------------------------------------------------------------------------------------------------------------- bad directories


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


# ------------------------------------------------------------------------------------------------------------------------ indexes


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


# -------------------------------------------------------------------------------------------------------------------------- reads


@pytest.fixture
def opened(tmp_path: Path) -> Checkpoint:
    tensors = {"matrix": tensor(7, 3), "scalar": torch.tensor(2.5), "vector": tensor(5), "hollow": torch.zeros(4, 0)}
    save_file(tensors, tmp_path / "model.safetensors")
    return Checkpoint.open(tmp_path)


def test_scalars_and_hollow_tensors(opened: Checkpoint) -> None:
    assert opened.read("scalar") == 2.5
    assert opened.read("hollow").shape == (4, 0)
    assert opened.rows("hollow", 1, 3).shape == (2, 0)
    assert opened.rows("matrix", 2, 2).shape == (0, 3)
    with pytest.raises(ValueError, match=r"scalar: a scalar has no rows; use read\(\)"):
        opened.rows("scalar", 0, 1)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 8), (8, 8)])
def test_rows_that_are_not_there(opened: Checkpoint, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=rf"matrix: rows \[{start}, {stop}\) are not within its 7 rows"):
        opened.rows("matrix", start, stop)


def test_unknown_tensor(opened: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match=r"no tensor 'matrx'; did you mean 'matrix'\?"):
        opened.rows("matrx", 0, 1)
    with pytest.raises(CheckpointError, match=r"no tensor 'zzz'; it has 4 tensors, such as"):
        opened.read("zzz")


def test_out_is_filled_and_returned(opened: Checkpoint) -> None:
    buffer = torch.full((4, 3), torch.nan)
    out = buffer[1:3]
    assert opened.rows("matrix", 5, 7, out=out) is out
    assert torch.equal(out, tensor(7, 3)[5:7])
    assert buffer[0].isnan().all() and buffer[3].isnan().all()
    parameter = torch.nn.Parameter(torch.zeros(5))
    assert torch.equal(opened.read("vector", out=parameter), tensor(5))


@pytest.mark.parametrize(
    "out", [torch.empty(3, 3), torch.empty(2, 3, dtype=torch.float16), torch.empty(3, 2).t(), torch.empty(2, 3, device="meta")]
)
def test_out_that_does_not_fit(opened: Checkpoint, out: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"matrix: out must be contiguous, on the CPU, of shape \(2, 3\) and torch.float32"):
        opened.rows("matrix", 0, 2, out=out)


def test_closed(opened: Checkpoint) -> None:
    opened.close()
    opened.close()
    for use in (lambda: opened.rows("matrix", 0, 1), lambda: opened.read("matrix"), opened.fingerprint):
        with pytest.raises(ValueError, match="was closed"):
            use()


def test_a_file_that_shrinks_while_it_is_read(opened: Checkpoint) -> None:
    os.truncate(opened.tensors["matrix"].file, 200)
    with pytest.raises(CheckpointError, match=r"model.safetensors: ends at byte \d+, \d+ bytes too soon"):
        for name in opened.tensors:
            opened.read(name)


def test_reads_that_come_in_parts(opened: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system may give them: of more than 2 GiB, it always does."""
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, views, offset: read(file, [views[0][:7]], offset))
    assert torch.equal(opened.rows("matrix", 1, 7), tensor(7, 3)[1:7])


def test_threads_read_at_once(tmp_path: Path) -> None:
    values = torch.arange(4096 * 64, dtype=torch.int32).view(4096, 64)
    save_file({"w": values}, tmp_path / "model.safetensors")
    wrong = []
    with Checkpoint.open(tmp_path) as checkpoint:

        def work(seed: int) -> None:
            for k in range(200):
                start = (seed * 977 + k * 131) % 4000
                if not torch.equal(checkpoint.rows("w", start, start + 96), values[start : start + 96]):
                    wrong.append(start)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


MEMORY = """
import sys, torch
from flatlm.utilities.checkpoints.directory import Checkpoint
def resident(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
with Checkpoint.open(sys.argv[1]) as checkpoint:
    buffer = torch.zeros(256, 1024)
    checkpoint.rows("w", 0, 256, out=buffer)
    before = resident()
    for start in range(0, 65536, 256):
        checkpoint.rows("w", start, start + 256, out=buffer)
    print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_resident_memory_is_that_of_the_rows(tmp_path: Path, name: str) -> None:
    values = {"w": torch.zeros(65536, 1024)}  # 256 MiB
    save_file(values, tmp_path / name) if name.endswith("safetensors") else torch.save(values, tmp_path / name)
    grown = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert int(grown) < 8 * 1024, "KiB"


# -------------------------------------------------------------------------------------------------------------------- fingerprint


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
