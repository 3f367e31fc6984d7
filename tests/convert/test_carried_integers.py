"""Integers that a checkpoint holds are in the exported file as they were; where no scheme holds them, the report says why."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor

from flatlm.convert.weights import IntegerSource, WeightLayout
from flatlm.quantize import encode as encoder
from flatlm.quantize.carried import IntegerRows, StoredIntegers, fit, measure_scales, merge
from flatlm.quantize.encode import Encoded, decode, encode
from flatlm.quantize.recipes import Recipe
from flatlm.quantize.schemes import SCHEMES, Scheme
from tests.quantize.test_runtime import COLUMNS, RESOLVERS, ROWS, OneOperator, run
from tests.quantized_checkpoints import (
    Linear,
    random_linear,
)

NAME = "blocks.0.feed_forward.down.weight"


@dataclass(frozen=True)
class Stored:
    """A weight source that holds a quantized weight."""

    linear: Linear
    obstacle: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.linear.integers.shape)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.linear.values[start:stop]

    def origin(self, row: int) -> str:
        return "memory"

    def stored_integers(self) -> StoredIntegers:
        block = None if self.linear.scales.shape[1] == 1 else self.linear.group_size
        return measure_scales(StoredIntegers(self.linear.bits, block, self.obstacle), self.linear.scales.float())

    def integer_rows(self, start: int, stop: int) -> IntegerRows:
        assert self.obstacle is None
        integers, scales = self.linear.integers[start:stop].to(torch.int8), self.linear.scales[start:stop].float()
        return IntegerRows(integers.t().contiguous().t(), scales.t().contiguous().t())  # as a form that is stored by columns gives them


def written(path: Path, source: IntegerSource, scheme: str) -> tuple[Tensor, Tensor, WeightLayout]:
    """The integers [R, C] and scales [R, G] that a layout of this one weight writes, and the layout."""
    layout = WeightLayout({NAME: source}, Recipe.mixed("test", "none", {"*.down.*": scheme}))
    with path.open("w+b") as file:
        scales = layout.write(file.fileno(), 64, threads=3)
    placed, content = layout.weights[NAME], path.read_bytes()[64:]
    rows, columns = source.shape
    data = np.frombuffer(content, np.uint8, placed.data_size, placed.data_offset).reshape(rows, -1)
    if placed.scheme.storage == "int4":
        nibbles = np.stack((data & 15, data >> 4), -1).reshape(rows, columns).astype(np.int8)
        integers = np.where(nibbles > 7, nibbles - 16, nibbles)
    else:
        integers = data.view(np.int8)
    if placed.scales_offset is None:
        return torch.from_numpy(integers.copy()), torch.from_numpy(scales[NAME]).reshape(rows, 1), layout
    blocks = np.frombuffer(content, np.float16, placed.block_scales_size // 2, placed.scales_offset).reshape(rows, -1)
    return torch.from_numpy(integers.copy()), torch.from_numpy(blocks.copy()), layout


HELD = {
    "int8": (8, None, "dynamic_int8"),
    "int8_weight_only": (8, None, "weight_only_int8"),
    "int4_channel": (4, None, "dynamic_int4_channel"),
    "int4_channel_in_int8": (4, None, "dynamic_int8"),
    "int4_channel_in_blocks": (4, None, "dynamic_int4_block32"),
    "groups_of_32": (4, 32, "dynamic_int4_block32"),
    "groups_of_128": (4, 128, "dynamic_int4_block128"),
    "groups_of_128_in_32": (4, 128, "dynamic_int4_block32"),
    "groups_of_64_in_32": (4, 64, "dynamic_int4_block32"),
}


@pytest.mark.parametrize("case", HELD)
def test_integers_are_in_the_file_as_they_were(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "CHUNK_ELEMENTS", 3000)
    bits, group_size, scheme = HELD[case]
    linear = random_linear(40, 256, bits=bits, group_size=group_size)
    integers, scales, layout = written(tmp_path / "part", Stored(linear), scheme)
    per_channel = SCHEMES[scheme].block_size is None
    lowest = -SCHEMES[scheme].levels if per_channel else -8
    assert torch.equal(integers.long(), linear.integers.clamp_min(lowest))
    given = linear.scales.float().repeat_interleave(scales.shape[1] // linear.scales.shape[1], 1)
    assert torch.equal(scales.float(), given if per_channel else given.to(torch.bfloat16).float())
    moved = int((linear.integers < lowest).sum())
    assert (moved > 0) == (case in ("int8", "int8_weight_only", "int4_channel"))
    notes = f" ({moved} of their integers moved up by one into the runtime's range)" if moved else ""
    notes = notes if per_channel else " (the block scales of 1 rounded to bfloat16)"
    assert str(layout.carry) == f"1 weight carried over unchanged{notes}"
    assert layout.carry.to_dict() == {"carried": 1, "scales_rounded": int(not per_channel), "moved": moved, "re_encoded": {}}


def test_scales_of_bfloat16_are_exact_in_blocks(tmp_path: Path) -> None:
    linear = random_linear(40, 256, group_size=32, dtype=torch.bfloat16)
    integers, scales, layout = written(tmp_path / "part", Stored(linear), "dynamic_int4_block32")
    assert torch.equal(integers.long(), linear.integers)
    assert torch.equal(scales.float(), linear.scales.float())
    assert str(layout.carry) == "1 weight carried over unchanged"


REFUSED = {
    "obstacle": (4, 32, "dynamic_int4_block32", "asymmetric", "asymmetric"),
    "int8_to_int4": (8, None, "dynamic_int4_channel", None, "8 bits to int4"),
    "groups_to_channel": (8, 128, "dynamic_int8", None, "groups of 128 to one scale a channel"),
    "small_groups": (4, 64, "dynamic_int4_block128", None, "groups of 64 to blocks of 128"),
    "floats": (4, 32, "float16", None, "as float16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_scheme_holds_is_encoded_anew_and_said(case: str, tmp_path: Path) -> None:
    bits, group_size, scheme, obstacle, reason = REFUSED[case]
    linear = random_linear(40, 256, bits=bits, group_size=group_size)
    layout = WeightLayout({NAME: Stored(linear, obstacle)}, Recipe.mixed("test", "none", {"*.down.*": scheme}))
    assert str(layout.carry) == f"0 weights carried over unchanged, 1 re-encoded ({reason})"
    with (tmp_path / "part").open("w+b") as file:
        layout.write(file.fileno(), 0)
    placed = layout.weights[NAME]
    expected = encode(linear.values, SCHEMES[scheme]).data.tobytes()
    assert (tmp_path / "part").read_bytes()[placed.data_offset :][: placed.data_size] == expected


def test_scales_beyond_a_scheme_are_encoded_anew() -> None:
    small = random_linear(4, 64, group_size=32, dtype=torch.float32)
    for factor, block, channel in [
        (1, True, True),
        (2.0**-16, False, True),
        (2.0**-120, False, False),
        (2.0**30, False, True),
        (-1, False, False),
    ]:
        stored = measure_scales(StoredIntegers(4, None), small.scales * factor)
        assert (stored.misfit(SCHEMES["dynamic_int4_block32"]) is None) == block
        assert (stored.misfit(SCHEMES["dynamic_int4_channel"]) is None) == channel


@pytest.mark.parametrize("scheme", ["dynamic_int4_block32", "dynamic_int8"])
def test_a_scale_of_zero_is_a_weight_of_zeros(scheme: str, tmp_path: Path) -> None:
    block = SCHEMES[scheme].block_size
    linear = random_linear(4, 64, group_size=block)
    linear.scales[2, -1] = 0
    integers, scales, _ = written(tmp_path / "part", Stored(linear), scheme)
    assert (scales > 0).all()
    spread = scales.float().repeat_interleave(64 // scales.shape[1], 1)
    expected = linear.integers * (linear.scales.to(torch.bfloat16) if block else linear.scales).float()[:, linear.group_of]
    assert torch.equal(integers.float() * spread, expected)
    assert not (integers.float() * spread)[2, -32:].any()


def test_parts_are_carried_only_together() -> None:
    four, eight = StoredIntegers(4, 32, None, 0.5, 1.0), StoredIntegers(8, 32, None, 0.25, 2.0, exact_in_blocks=False)
    assert merge([None, None]) is None
    assert merge([four, eight]) == StoredIntegers(8, 32, None, 0.25, 2.0, exact_in_blocks=False)
    assert "not quantized" in (merge([four, None]).obstacle or "")
    assert "different groups" in (merge([four, StoredIntegers(4, 64)]).obstacle or "")
    assert merge([four, StoredIntegers(4, 32, "asymmetric")]).obstacle == "asymmetric"


def test_fit_leaves_its_input_alone() -> None:
    rows = IntegerRows(torch.full((2, 64), -128, dtype=torch.int8), torch.tensor([[0.0], [1.0]]))
    fitted, moved = fit(rows, SCHEMES["dynamic_int8"])
    assert moved == 64  # those whose scale is 0 have become zeros
    assert rows.integers.min() == -128
    assert fitted.integers.tolist() == [[0] * 64, [-127] * 64]


@pytest.mark.parametrize("resolver", RESOLVERS)
@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES.values() if scheme.quantized], ids=lambda scheme: scheme.name)
def test_the_runtime_computes_with_what_is_carried(scheme: Scheme, resolver: str) -> None:
    """Every integer of a form is there, in blocks the lowest too; inputs of -1, so that a product that overflows shows."""
    linear = random_linear(ROWS, COLUMNS, bits=8 if scheme.storage == "int8" else 4, group_size=scheme.block_size, dtype=torch.bfloat16)
    linear.integers[:, :8] = linear.integers.min()
    rows, moved = fit(IntegerRows(linear.integers.to(torch.int8), linear.scales.float()), scheme)
    assert (moved > 0) == (scheme.block_size is None)
    encoded: list[Encoded] = []
    encoder.encode_stream(lambda start, stop: rows, (ROWS, COLUMNS), scheme, lambda start, stop, part: encoded.append(part), threads=1)
    weight = decode(encoded[0], scheme, (ROWS, COLUMNS))
    assert torch.equal(
        weight, linear.integers.clamp_min(-scheme.levels if moved else -8).float() * linear.scales[:, linear.group_of].float()
    )
    inputs = np.concatenate([np.eye(COLUMNS, dtype=np.float32), -np.ones((8, COLUMNS), np.float32)])
    inputs[-8:, 0] = 1
    file = OneOperator()
    x = file.tensor("x", inputs.shape, schema.TensorType.FLOAT32)
    table = file.weight(encoded[0], scheme)
    output = file.tensor("output", (len(inputs), ROWS), schema.TensorType.FLOAT32)
    multiplied = run(file.finish(schema.BuiltinOperator.FULLY_CONNECTED, 12, [x, table, -1], output), inputs, resolver)
    expected = inputs.astype(np.float64) @ weight.numpy().T.astype(np.float64)
    np.testing.assert_allclose(multiplied[:COLUMNS], expected[:COLUMNS], rtol=1e-6, atol=0)
    np.testing.assert_allclose(multiplied[COLUMNS:], expected[COLUMNS:], atol=0.01 * np.abs(expected).max())
