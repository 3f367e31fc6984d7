"""Safetensors headers: what is read, and every way in which one can be wrong."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.directory import Checkpoint
from flatlm.utilities.checkpoints.safetensors_file import FORMATS
from tests.utilities.damage import damage_and_read

READABLE = [form.dtype for form in FORMATS.values() if form.supported]


def write(directory: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    """A safetensors file by hand: `header` as JSON (or as it is), then `data`."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = directory / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def fields(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    assert str(caught.value).startswith(f"{directory / 'model.safetensors'}: ")
    return str(caught.value)


def random_bits(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    bits = torch.iinfo(dtype)
    return torch.randint(max(bits.min, -(2**31)), min(bits.max, 2**31), shape, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", READABLE, ids=str)
def test_every_readable_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    values = random_bits(dtype, (5, 3), 7)
    save_file({"w": values, "scalar": values[0, 0].clone()}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.tensors["w"].dtype == dtype
        assert checkpoint.tensors["w"].unsupported is None
        assert torch.equal(checkpoint.rows("w", 1, 4), values[1:4])
        assert torch.equal(checkpoint.read("scalar"), values[0, 0])


@st.composite
def files(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    shapes = draw(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=1, max_size=4))
    return {f"t{i}": random_bits(draw(st.sampled_from(READABLE)), tuple(shape), i) for i, shape in enumerate(shapes)}


@given(files(), st.data())
@settings(max_examples=60, deadline=None)
def test_rows_equal_slices_of_safe_open(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, torch.Tensor], data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("rows")
    save_file(tensors, directory / "model.safetensors")
    with Checkpoint.open(directory) as checkpoint, safe_open(directory / "model.safetensors", "pt") as reference:
        for name, record in checkpoint.tensors.items():
            assert record.shape == tuple(reference.get_slice(name).get_shape())
            start = data.draw(st.integers(0, record.shape[0]))
            stop = data.draw(st.integers(start, record.shape[0]))
            whole = reference.get_tensor(name)
            assert checkpoint.read(name).dtype == whole.dtype
            assert torch.equal(checkpoint.rows(name, start, stop), whole[start:stop])


def test_tensors_come_in_the_order_of_their_values(tmp_path: Path) -> None:
    header = {"late": fields(offsets=(8, 16)), "__metadata__": {"format": "pt"}, "early": fields(), "hollow": fields("F16", (0,), (8, 8))}
    write(tmp_path, header, struct.pack("<4f", 1, 2, 3, 4))
    with Checkpoint.open(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == ["early", "hollow", "late"]
        assert checkpoint.read("late").tolist() == [3.0, 4.0]


def test_a_padded_header_is_fine(tmp_path: Path) -> None:
    write(tmp_path, json.dumps({"w": fields()}).encode() + b"   ", struct.pack("<2f", 1, 2))
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.read("w").tolist() == [1.0, 2.0]


UNREADABLE = [(name, form) for name, form in FORMATS.items() if not form.supported]


@pytest.mark.parametrize(("name", "nbytes"), [(name, form.bits) for name, form in UNREADABLE] + [("F3_SOON", 5)])
def test_unsupported_formats_are_listed_and_only_reading_them_fails(tmp_path: Path, name: str, nbytes: int) -> None:
    header = {"plain": fields(), "odd": fields(name, (4, 2), (8, 8 + nbytes))}
    path = write(tmp_path, header, bytes(8 + nbytes))
    with Checkpoint.open(tmp_path) as checkpoint:
        record = checkpoint.tensors["odd"]
        assert (record.shape, record.unsupported) == ((4, 2), name)
        assert checkpoint.read("plain").tolist() == [0.0, 0.0]
        assert len(checkpoint.fingerprint()) == 64
        for read in (lambda: checkpoint.read("odd"), lambda: checkpoint.rows("odd", 0, 1)):
            with pytest.raises(CheckpointError) as caught:
                read()
            assert str(caught.value).startswith(
                f"{path}: tensor 'odd' is stored as {name}, which FlatLM does not read; use a checkpoint in"
            )


# ------------------------------------------------------------------------------------------------------------------------- errors


def test_truncated_in_every_place(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, 2), "b": torch.ones(3)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    for size in range(1, len(whole)):
        (tmp_path / "model.safetensors").write_bytes(whole[:size])
        message = refusal(tmp_path)
        assert "is truncated: " in message, size
        assert f" {size} " in message
        assert message.endswith("download it again")
    assert f"is truncated: {len(whole) - 1} of {len(whole)} bytes" in message


def test_trailing_junk(tmp_path: Path) -> None:
    write(tmp_path, {"w": fields()}, bytes(8) + b"junk!")
    assert "it has 5 bytes after the end of its last tensor" in refusal(tmp_path)


def test_the_header_is_bounded(tmp_path: Path) -> None:
    path = write(tmp_path, b"{}", length=100_000_001)
    with path.open("r+b") as stream:
        stream.truncate(200_000_000)  # a hole: such a file takes no space
    assert "its header claims 100000001 bytes, more than the 100000000 that the format allows" in refusal(tmp_path)
    write(tmp_path, b"<!DOCTYPE html><html>a page in place of the file</html>"[8:], length=int.from_bytes(b"<!DOCTYP", "little"))
    assert "more than the 100000000" in refusal(tmp_path)


@pytest.mark.parametrize(
    "header",
    [b"", b"{", b"nope", b'{"w": NaN', b'{"\xff": 1}', b"[" * 50_000, b'{"w": {"shape": [' + b"9" * 5000 + b"]}}"],
    ids=["empty", "open", "word", "unfinished", "utf8", "deep", "digits"],
)
def test_header_that_is_not_json(tmp_path: Path, header: bytes) -> None:
    write(tmp_path, header)
    assert "is corrupt: its header is not JSON (" in refusal(tmp_path)


def bad_headers() -> Iterator[tuple[object, str]]:
    yield [], "its header is not a JSON object"
    yield {"__metadata__": []}, "its __metadata__ is not a JSON object"
    yield {"w": 1}, "tensor 'w' lacks dtype, shape or data_offsets"
    for missing in ("dtype", "shape", "data_offsets"):
        yield {"w": {key: value for key, value in fields().items() if key != missing}}, "tensor 'w' lacks dtype, shape or data_offsets"
    for offsets in (None, 8, [8], [0, 4, 8], [8, 0], [-8, 0], [0.0, 8.0], [False, 8], ["0", "8"]):
        yield {"w": fields(offsets=offsets)}, "tensor 'w' has data_offsets"
    for shape in (None, 2, [-2], [2.0], [True, 2], ["2"], [2**63], [0, 2**40, 2**40]):
        yield {"w": fields(shape=shape)}, "tensor 'w' has shape"
    for dtype in (None, 1, ["F32"]):
        yield {"w": fields(dtype=dtype)}, "tensor 'w' has dtype"
    for shape in ([3], [2, 2], [], [0]):
        yield {"w": fields(shape=shape)}, "tensor 'w' takes 8 bytes, which does not fit shape"
    yield {"w": fields("F64")}, "tensor 'w' takes 8 bytes, which does not fit shape (2,) of F64"
    yield {"w": fields("F4", (15,))}, "tensor 'w' takes 8 bytes, which does not fit shape (15,) of F4"
    yield {"w": fields(), "x": fields(offsets=(4, 12))}, "tensor 'x' begins at byte 4 of the values, not at 8: it overlaps"
    yield {"w": fields(), "x": fields(offsets=(0, 8))}, "tensor 'x' begins at byte 0 of the values, not at 8: it overlaps"
    yield {"w": fields(), "x": fields(offsets=(12, 20))}, "tensor 'x' begins at byte 12 of the values, not at 8: it leaves a gap"
    yield {"w": fields(offsets=(4, 12))}, "tensor 'w' begins at byte 4 of the values, not at 0: it leaves a gap"
    yield b'{"w": {"dtype": "F32", "dtype": "F32"}}', "its header names 'dtype' twice"
    yield b'{"w": 1, "w": 2}', "its header names 'w' twice"


@pytest.mark.parametrize(("header", "complaint"), bad_headers())
def test_corrupt_header(tmp_path: Path, header: object, complaint: str) -> None:
    write(tmp_path, header, bytes(20))
    message = refusal(tmp_path)
    assert f"is corrupt: {complaint}" in message
    assert message.endswith("; download it again")
    assert len(message) < 400


def test_a_long_value_is_not_repeated_in_full(tmp_path: Path) -> None:
    write(tmp_path, {"w": fields(shape=["x" * 5000])}, bytes(8))
    assert len(refusal(tmp_path)) < 400


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_damage_to_a_header_is_an_error_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    directory = tmp_path_factory.mktemp("damage")
    path = directory / "model.safetensors"
    save_file({"a": torch.ones(2, 2), "b": torch.ones(3, dtype=torch.int8)}, path)
    damage_and_read(path, data, most=3)
