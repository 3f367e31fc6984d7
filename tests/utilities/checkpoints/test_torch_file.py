"""Files of torch.save: read lazily, without running their code, whatever views and wrappers they hold."""

import argparse
import io
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.directory import Checkpoint
from flatlm.utilities.checkpoints.files import Contiguous, Strided
from tests.utilities.damage import damage_and_read

NAME = "pytorch_model.bin"


def save(directory: Path, loaded: Any, **options: Any) -> Path:
    torch.save(loaded, directory / NAME, **options)
    return directory / NAME


def rewrite(path: Path, *, compression: int = zipfile.ZIP_STORED, order: int = 1, **changes: bytes | None) -> None:
    """The same zip through another tool: perhaps compressed, reversed, or with records changed (None: left out)."""
    with zipfile.ZipFile(path) as old:
        records = {name: old.read(name) for name in old.namelist()}
    folder = next(iter(records)).split("/")[0]
    for record, value in changes.items():
        records[f"{folder}/{record}"] = value
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, value in list(records.items())[::order]:
            if value is not None:
                new.writestr(name, value)


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    assert str(caught.value).startswith(f"{directory / NAME}: ")
    return str(caught.value)


def source(checkpoint: Checkpoint, name: str) -> object:
    return checkpoint._entries[name].source


base = torch.arange(120, dtype=torch.float32).reshape(10, 12)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    ],
    ids=str,
)
@pytest.mark.parametrize("legacy", [False, True])
def test_every_readable_dtype(tmp_path: Path, dtype: torch.dtype, legacy: bool) -> None:
    values = (torch.randn(6, 5, generator=torch.Generator().manual_seed(3)) * 50).to(dtype)
    save(tmp_path, {"w": values, "p": values[2, 2], "hollow": values[:0]}, _use_new_zipfile_serialization=not legacy)
    with Checkpoint.open(tmp_path) as checkpoint:
        assert {name: record.shape for name, record in checkpoint.tensors.items()} == {"w": (6, 5), "p": (), "hollow": (0, 5)}
        assert {record.dtype for record in checkpoint.tensors.values()} == {dtype}
        assert torch.equal(checkpoint.rows("w", 1, 4), values[1:4])
        assert torch.equal(checkpoint.read("p"), values[2, 2])
        assert torch.equal(checkpoint.rows("hollow", 0, 0), values[:0])


VIEWS = {
    "plain": (base, Contiguous),
    "rows": (base[3:7], Contiguous),
    "one row": (base[4], Contiguous),
    "flat": (base.view(-1)[5:17], Contiguous),
    "scalar": (base[5, 6], Contiguous),
    "columns": (base[:, 2:9], Strided),
    "transposed": (base.t(), Strided),
    "block": (base[2:5, 3:9].t(), Strided),
    "steps": (base[1::3, ::2], Strided),
    "expanded": (base[:1].expand(5, 12), Strided),
    "expanded scalar": (base[2, 3].expand(4, 2), Strided),
    "permuted": (base.view(2, 5, 12).permute(2, 0, 1), Strided),
    "negated": (torch._neg_view(base[2:4]), Strided),
    "hollow": (base[:, :0], Contiguous),
    "hollow at the end": (base[::4][3:], Contiguous),
    "parameter": (torch.nn.Parameter(base[1:3]), Contiguous),
    "other storage": (base.clone().half(), Contiguous),
}


@pytest.mark.parametrize("legacy", [False, True])
def test_views_of_shared_storages(tmp_path: Path, legacy: bool) -> None:
    save(tmp_path, {name: view for name, (view, _) in VIEWS.items()}, _use_new_zipfile_serialization=not legacy)
    if not legacy:
        assert (tmp_path / NAME).stat().st_size < 2 * base.nbytes + 4000  # torch.save kept them shared
    with Checkpoint.open(tmp_path) as checkpoint:
        for name, (view, kind) in VIEWS.items():
            assert legacy or type(source(checkpoint, name)) is kind, name
            assert torch.equal(checkpoint.read(name), view.detach()), name
            assert checkpoint.read(name).is_contiguous()
            for start in range(len(view) if view.ndim else 0):
                assert torch.equal(checkpoint.rows(name, start, len(view)), view.detach()[start:]), (name, start)
        assert len(checkpoint.fingerprint()) == 64


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_rows_of_any_view(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    view = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for _ in range(data.draw(st.integers(0, 4))):
        dim = data.draw(st.integers(0, view.ndim - 1))
        match data.draw(st.sampled_from(["narrow", "step", "transpose", "expand"])):
            case "narrow":
                start = data.draw(st.integers(0, view.shape[dim]))
                view = view.narrow(dim, start, data.draw(st.integers(0, view.shape[dim] - start)))
            case "step":
                view = view[(slice(None),) * dim + (slice(None, None, data.draw(st.integers(1, 3))),)]
            case "transpose":
                view = view.transpose(0, dim)
            case "expand":
                view = view.unsqueeze(dim).expand(*view.shape[:dim], data.draw(st.integers(1, 3)), *view.shape[dim:])
    directory = tmp_path_factory.mktemp("view")
    save(directory, {"w": view})
    start = data.draw(st.integers(0, len(view)))
    stop = data.draw(st.integers(start, len(view)))
    with Checkpoint.open(directory) as checkpoint:
        assert torch.equal(checkpoint.rows("w", start, stop), view[start:stop])


def test_storages_are_found_by_their_names_not_by_their_order(tmp_path: Path) -> None:
    state = {f"layer{i}": torch.full((64,), float(i)) for i in range(12)}  # all of one size: a mix-up would not show in the sizes
    path = save(tmp_path, state)
    for _ in range(2):
        with Checkpoint.open(tmp_path) as checkpoint:
            for i in range(12):
                assert checkpoint.read(f"layer{i}").tolist() == [float(i)] * 64
        rewrite(path, order=-1)


class Bare(torch.nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "lr": torch.tensor(0.1)},
        lambda state: {"model": state, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
        lambda state: {"module": state, "buffer_names": [], "optimizer": None},
        lambda state: {"model_state_dict": state},
        lambda state: {"model": {"module": {"state_dict": state}}},
        lambda state: {**state, "version": 2, "note": "text", "model": None},
        lambda state: torch.nn.ModuleDict({"embed": Bare(state["embed.weight"]), "head": Bare(state["head.weight"])}).state_dict(),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_wrappers(tmp_path: Path, wrap: Any, legacy: bool) -> None:
    state = {"embed.weight": base, "head.weight": base[:2]}
    save(tmp_path, wrap(state), _use_new_zipfile_serialization=not legacy)
    with Checkpoint.open(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == list(state)
        assert torch.equal(checkpoint.read("head.weight"), base[:2])


@pytest.mark.parametrize(
    ("loaded", "complaint"),
    [
        (
            {"weights": {"w": base}, "epoch": 1},
            "has no tensors at its top or under state_dict, model_state_dict, model, module (it holds: 'weights', 'epoch')",
        ),
        ([base], "has no tensors at its top or under state_dict, model_state_dict, model, module (it holds: list)"),
        (base, "(it holds: Tensor)"),
        ({}, "(it holds: )"),
        ({1: base}, "its tensors' names are not all strings"),
    ],
)
def test_no_state_dict(tmp_path: Path, loaded: Any, complaint: str) -> None:
    save(tmp_path, loaded)
    assert complaint in refusal(tmp_path)
    assert "re-save its weights as safetensors" in refusal(tmp_path)


# ------------------------------------------------------------------------------------------------------------------ untrusted code


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("legacy", [False, True])
def test_no_pickled_code_runs(tmp_path: Path, legacy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    (tmp_path / "model").mkdir()
    save(tmp_path / "model", {"w": base, "evil": Evil(tmp_path / "trace")}, _use_new_zipfile_serialization=not legacy)
    message = refusal(tmp_path / "model")
    assert "holds Python objects other than tensors (posix.mkdir), whose code FlatLM does not run; re-save" in message
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_that_are_not_tensors(tmp_path: Path, legacy: bool) -> None:
    save(tmp_path, {"w": base, "args": argparse.Namespace(lr=1)}, _use_new_zipfile_serialization=not legacy)
    assert "holds Python objects other than tensors (argparse.Namespace), whose code FlatLM does not run" in refusal(tmp_path)


def test_torchscript(tmp_path: Path) -> None:
    rewrite(save(tmp_path, {"w": base}), **{"constants.pkl": b""})
    assert "is a TorchScript program, not weights" in refusal(tmp_path)


# ----------------------------------------------------------------------------------------------------------------------- bad files


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


def test_legacy_files_are_loaded_once_at_the_first_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, {"a": base, "b": base.t()}, _use_new_zipfile_serialization=False)
    with Checkpoint.open(tmp_path) as checkpoint:
        loads = []
        load = torch.load
        monkeypatch.setattr(torch, "load", lambda *args, **options: loads.append(options) or load(*args, **options))
        assert len(checkpoint.fingerprint()) == 64
        assert loads == []
        assert torch.equal(checkpoint.rows("b", 2, 4), base.t()[2:4])
        assert torch.equal(checkpoint.rows("a", 2, 4), base[2:4])
        assert loads == [{"map_location": "cpu", "weights_only": True}]


def test_a_tar_of_the_oldest_format_is_refused(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / NAME, "w") as archive:
        info = tarfile.TarInfo("pickle")
        data = pickle.dumps({"w": 1})
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    assert "is not a file of torch.save" in refusal(tmp_path)


def test_fingerprint_of_a_torch_file(tmp_path: Path) -> None:
    prints = set()
    for name, state in {"1": {"w": base}, "2": {"w": base + 1}, "3": {"v": base}, "4": {"w": base.t()}}.items():
        for legacy in (False, True):
            directory = tmp_path / f"{name}{legacy}"
            directory.mkdir()
            save(directory, state, _use_new_zipfile_serialization=not legacy)
            with Checkpoint.open(directory) as checkpoint:
                prints.add(checkpoint.fingerprint())
    assert len(prints) == 8
    for note in ("aa", "bb"):  # a file of the same size, with the same tensors
        save(tmp_path, {"w": base, "note": note})
        with Checkpoint.open(tmp_path) as checkpoint:
            prints.add(checkpoint.fingerprint())
    assert len(prints) == 10


@given(st.data())
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize("legacy", [False, True])
def test_any_damage_is_an_error_or_harmless(tmp_path_factory: pytest.TempPathFactory, legacy: bool, data: st.DataObject) -> None:
    directory = tmp_path_factory.mktemp("damage")
    path = save(directory, {"a": base[:2], "b": base[:1, :3].half()}, _use_new_zipfile_serialization=not legacy)
    damage_and_read(path, data, most=4)
