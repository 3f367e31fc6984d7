"""Files of torch.save that are damaged, of an unusual kind, or none: each is one error that names the file."""

import io
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.directory import Checkpoint
from tests.utilities.checkpoints.torch_files import NAME, base, refusal, rewrite, save
from tests.utilities.damage import damage_and_read


def test_unreadable_kinds_are_listed_and_only_reading_them_fails(tmp_path: Path) -> None:
    kinds = {
        "sparse_coo": base.to_sparse(),
        "complex64": torch.complex(base, base),
        "float8_e4m3fn": base.to(torch.float8_e4m3fn),
        "a tensor without values": torch.empty(3, 4, device="meta"),
    }
    path = save(tmp_path, {**kinds, "plain": base})
    with Checkpoint.open(tmp_path) as checkpoint:
        assert {name: record.unsupported for name, record in checkpoint.tensors.items()} == {
            **{name: name for name in kinds},
            "plain": None,
        }
        assert checkpoint.tensors["sparse_coo"].shape == (10, 12)
        assert torch.equal(checkpoint.read("plain"), base)
        assert len(checkpoint.fingerprint()) == 64
        for name in kinds:
            with pytest.raises(CheckpointError) as caught:
                checkpoint.read(name)
            assert str(caught.value).startswith(f"{path}: tensor {name!r} is stored as {name}, which FlatLM does not read")


class Odd(torch.Tensor):
    """A subclass, such as those of quantized or distributed weights: its own class says what its values mean."""


@pytest.mark.parametrize("legacy", [False, True])
def test_a_subclass_that_the_process_allows_is_not_read(tmp_path: Path, legacy: bool) -> None:
    save(tmp_path, {"odd": base.as_subclass(Odd), "plain": base}, _use_new_zipfile_serialization=not legacy)
    assert "holds Python objects other than tensors" in refusal(tmp_path)
    with torch.serialization.safe_globals([Odd]), Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.tensors["odd"].unsupported == "Odd"
        assert torch.equal(checkpoint.read("plain"), base)


def test_big_endian(tmp_path: Path) -> None:
    rewrite(save(tmp_path, {"w": base}), byteorder=b"big")
    assert "its byte order is 'big', not 'little'; on a little-endian machine re-save" in refusal(tmp_path)


def test_files_from_before_byte_orders_were_noted(tmp_path: Path) -> None:
    rewrite(save(tmp_path, {"w": base}), byteorder=None, **{".format_version": None, ".storage_alignment": None})
    with Checkpoint.open(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.read("w"), base)


def test_compressed(tmp_path: Path) -> None:
    rewrite(save(tmp_path, {"w": base}), compression=zipfile.ZIP_DEFLATED)
    message = refusal(tmp_path)
    assert "is compressed or encrypted, as torch.save never does; re-save" in message


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    rewrite(save(tmp_path, {"w": base}), **{"data.pkl": None})
    assert "is a zip, but not one of torch.save (no data.pkl in it)" in refusal(tmp_path)


def test_a_record_twice(tmp_path: Path) -> None:
    path = save(tmp_path, {"w": base})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"another")
    assert "is there twice" in refusal(tmp_path)


def test_a_huge_structure_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, {"w": base})
    monkeypatch.setattr("flatlm.utilities.checkpoints.torch_file.MAX_STRUCTURE", 50)
    assert "data.pkl' has " in refusal(tmp_path)
    assert "bytes, more than 50" in refusal(tmp_path)


def test_a_tensor_that_reaches_beyond_its_storage(tmp_path: Path) -> None:
    path = save(tmp_path, {"w": base})
    rewrite(path, **{"data/0": bytes(base.nbytes - 4)})
    assert "is corrupt: tensor 'w' reaches beyond its 476 bytes of values; download it again" in refusal(tmp_path)


@pytest.mark.parametrize(("field", "change"), [("header_offset", 5), ("header_offset", 10**6), ("file_size", 10**6)])
def test_a_directory_of_the_zip_that_points_elsewhere(tmp_path: Path, field: str, change: int) -> None:
    path = save(tmp_path, {"w": base})
    with zipfile.ZipFile(path, "a") as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith("/data/0"))
        setattr(info, field, getattr(info, field) + change)
        archive.comment = b"so that the directory is written again"
    assert re.search(r"its record '\w+/data/0' is not where it should be; download it again", refusal(tmp_path))


def test_a_directory_of_the_zip_that_points_into_values(tmp_path: Path) -> None:
    path = save(tmp_path, {"w": torch.zeros(10), "v": torch.zeros(1000)})
    with zipfile.ZipFile(path, "a") as archive:
        first, second = (next(info for info in archive.infolist() if info.filename.endswith(f"/data/{i}")) for i in (0, 1))
        first.header_offset = second.header_offset + 1000  # where a header of zeros would do, but for its magic number
        archive.comment = b"so that the directory is written again"
    assert "is not where it should be; download it again" in refusal(tmp_path)


def test_a_storage_that_is_not_there(tmp_path: Path) -> None:
    rewrite(save(tmp_path, {"w": base}), **{"data/0": None})
    assert "is truncated or corrupt, or holds tensors of an unusual kind" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"\x80\x04nonsense", b"not a file of torch", b"\0" * 40, b"GGUF" + bytes(40)])
def test_not_a_torch_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    assert "is not a file of torch.save (neither a zip nor a legacy pickle of tensors); download it again" in refusal(tmp_path)


def test_truncated_zip(tmp_path: Path) -> None:
    path = save(tmp_path, {"a": base, "b": base.half()})
    whole = path.read_bytes()
    for size in [*range(4, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:size])
        message = refusal(tmp_path)
        assert "is truncated or corrupt: not a readable zip (" in message or (size < 14 and "is not a file of torch.save" in message), size


def test_a_zip_whose_middle_is_missing(tmp_path: Path) -> None:
    path = save(tmp_path, {"a": base, "b": base.half()})
    whole = path.read_bytes()
    path.write_bytes(whole[:400] + whole[464:])
    assert "is truncated or corrupt" in refusal(tmp_path)


def test_truncated_legacy_file(tmp_path: Path) -> None:
    state = {"a": torch.ones(500), "b": torch.ones(3)}
    path = save(tmp_path, {**state, "more": [torch.ones(5)]}, _use_new_zipfile_serialization=False)
    Checkpoint.open(tmp_path).close()
    path = save(tmp_path, state, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for size in [*range(15, len(whole), 23), len(whole) - 1]:
        path.write_bytes(whole[:size])
        # Cut within the name of a class, it is another class that no torch file should hold.
        assert re.search("is truncated|holds Python objects", refusal(tmp_path)), size
    assert f"is truncated: {len(whole) - 1} bytes of at least {len(whole)}; download it again" in refusal(tmp_path)
    ones = torch.ones(8).numpy().tobytes()
    path.write_bytes(whole.replace((500).to_bytes(8, "little") + ones, (501).to_bytes(8, "little") + ones))
    with Checkpoint.open(tmp_path) as checkpoint, pytest.raises(CheckpointError, match="is truncated or corrupt, or holds"):
        checkpoint.read("a")


def test_a_tar_of_the_oldest_format_is_refused(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / NAME, "w") as archive:
        info = tarfile.TarInfo("pickle")
        data = pickle.dumps({"w": 1})
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    assert "is not a file of torch.save" in refusal(tmp_path)


@given(st.data())
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("legacy", [False, True])
def test_any_damage_is_an_error_or_harmless(tmp_path_factory: pytest.TempPathFactory, legacy: bool, data: st.DataObject) -> None:
    directory = tmp_path_factory.mktemp("damage")
    path = save(directory, {"a": base[:2], "b": base[:1, :3].half()}, _use_new_zipfile_serialization=not legacy)
    damage_and_read(path, data, most=4)
