"""The encoding against the formula written out in plain Python: one number at a time, no vectors, no torch."""

import struct
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlm.errors import CheckpointError, FlatlmError, RecipeError
from flatlm.quantize import encode as module
from flatlm.quantize.encode import Encoded, NonFiniteWeightError, decode, encode, encode_stream
from flatlm.quantize.schemes import SCHEMES, Scheme

QUANTIZED = [scheme for scheme in SCHEMES.values() if scheme.quantized]
BLOCKWISE = [scheme for scheme in QUANTIZED if scheme.block_size]
PER_CHANNEL = [scheme for scheme in QUANTIZED if not scheme.block_size]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def by_name(schemes: list[Scheme]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scheme", schemes, ids=[scheme.name for scheme in schemes])


def to_bfloat16(x: np.float32) -> np.float32:
    """Round to 8 significant bits, ties to even, on the bits."""
    (bits,) = struct.unpack("<I", struct.pack("<f", x))
    bits += 0x7FFF + ((bits >> 16) & 1)
    return np.float32(struct.unpack("<f", struct.pack("<I", bits & 0xFFFF0000))[0])


def reference(weight: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """Integers [R, C] and scales of a float32 weight, by the documented formula."""
    rows, columns = weight.shape
    block = scheme.block_size or columns
    levels = {"int8": 127, "int4": 7}[scheme.storage]
    integers = np.zeros((rows, columns), np.int8)
    scales = np.zeros((rows, columns // block), np.float16 if scheme.block_size else np.float32)
    for r in range(rows):
        for b in range(columns // block):
            group = range(b * block, (b + 1) * block)
            largest = max(abs(np.float32(weight[r, c])) for c in group)
            scale = np.float32(largest / np.float32(levels))
            if scheme.block_size:
                scale = np.float32(np.float16(to_bfloat16(max(scale, np.float32(2.0**-20)))))
            else:
                scale = max(scale, np.float32(2.0**-100))
            scales[r, b] = scale
            for c in group:
                integers[r, c] = round(float(np.float32(weight[r, c] / scale)))
    return integers, scales.reshape((rows,) if not scheme.block_size else scales.shape)


def pack(integers: np.ndarray) -> np.ndarray:
    return np.array([[(int(row[i]) & 15) + (int(row[i + 1]) & 15) * 16 for i in range(0, len(row), 2)] for row in integers], np.uint8)


def sample(rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Rows of widely different size, with exact ties, zeros and a row of nothing but zeros."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * torch.logspace(-3, 1, rows)[:, None]
    weight[:, 0::7] = 0
    weight[0] = torch.randint(-254, 255, (columns,), generator=generator) / 2  # scale 1 and halves: ties, for int8
    weight[0, 0::32] = 127
    if rows > 2:
        weight[1] = torch.randint(-14, 15, (columns,), generator=generator) / 2  # the same for int4
        weight[1, 0::32] = 7
        weight[2] = 0
    return weight.to(dtype)


@by_name(QUANTIZED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [128, 384])
def test_matches_the_formula(scheme: Scheme, dtype: torch.dtype, columns: int) -> None:
    weight = sample(6, columns, dtype)
    encoded = encode(weight, scheme)
    integers, scales = reference(weight.float().numpy(), scheme)
    assert encoded.scales is not None
    assert encoded.scales.dtype == scales.dtype
    np.testing.assert_array_equal(encoded.scales, scales)
    np.testing.assert_array_equal(encoded.data, integers if scheme.storage == "int8" else pack(integers))
    assert encoded.data.flags.c_contiguous
    assert encoded.data.nbytes == scheme.nbytes(weight.shape)
    assert encoded.scales.nbytes == scheme.scales_nbytes(weight.shape)
    assert encoded.scales.shape == scheme.scales_shape(weight.shape)


def test_columns_that_suit_no_vector() -> None:
    weight = sample(5, 37)
    integers, scales = reference(weight.numpy(), SCHEMES["dynamic_int8"])
    encoded = encode(weight, SCHEMES["dynamic_int8"])
    np.testing.assert_array_equal(encoded.data, integers)
    np.testing.assert_array_equal(encoded.scales, scales)
    weight = sample(5, 38)
    np.testing.assert_array_equal(
        encode(weight, SCHEMES["dynamic_int4_channel"]).data, pack(reference(weight.numpy(), SCHEMES["dynamic_int4_channel"])[0])
    )


@st.composite
def weights(draw: st.DrawFn) -> torch.Tensor:
    """[rows, 128 or 256] with each group of 32 at its own magnitude, from subnormal to 1e4, or all zero."""
    rows, columns = draw(st.integers(1, 3)), draw(st.sampled_from([128, 256]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    exponents = st.sampled_from([None, -149, -126, -100, -30, -24, -20, -17, -14, -8, -1, 0, 5, 13])
    sizes = draw(st.lists(exponents, min_size=rows * columns // 32, max_size=rows * columns // 32))
    scale = torch.tensor([0.0 if e is None else 2.0**e for e in sizes], dtype=torch.float64).reshape(-1, 1)
    values = torch.rand(len(sizes), 32, generator=generator, dtype=torch.float64) * 2 - 1
    return (values * scale).reshape(rows, columns).to(draw(st.sampled_from(DTYPES)))


@by_name(QUANTIZED)
@given(weight=weights())
@settings(max_examples=60, deadline=None)
def test_error_is_at_most_half_a_scale_and_zero_stays_zero(scheme: Scheme, weight: torch.Tensor) -> None:
    encoded = encode(weight, scheme)
    exact = weight.float().double()
    assert encoded.scales is not None
    step = (
        torch.from_numpy(encoded.scales)
        .double()
        .reshape(weight.shape[0], -1)
        .repeat_interleave(scheme.block_size or weight.shape[1], dim=1)
    )
    assert (step > 0).all()
    decoded = decode(encoded, scheme, weight.shape)
    assert ((decoded.double() - exact).abs() <= step * 0.5 * (1 + 1e-4)).all()
    assert (decoded[exact == 0] == 0).all()
    integers = (decoded.double() / step).round()
    assert integers.abs().max() <= scheme.levels


@by_name(QUANTIZED)
@given(weight=weights())
@settings(max_examples=10, deadline=None)
def test_any_weight_matches_the_formula(scheme: Scheme, weight: torch.Tensor) -> None:
    encoded = encode(weight, scheme)
    integers, scales = reference(weight.float().numpy(), scheme)
    np.testing.assert_array_equal(encoded.scales, scales)
    np.testing.assert_array_equal(encoded.data, integers if scheme.storage == "int8" else pack(integers))


@by_name(list(SCHEMES.values()))
@pytest.mark.parametrize("chunk", [1, 256, 700, 1 << 20])
def test_chunks_do_not_matter(scheme: Scheme, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = sample(11, 256, torch.bfloat16)
    whole = encode(weight, scheme)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    parts = [encode(weight[:4], scheme), encode(weight[4:5], scheme), encode(weight[5:], scheme)]
    for again in (encode(weight, scheme), Encoded(np.concatenate([p.data for p in parts]), None)):
        np.testing.assert_array_equal(again.data, whole.data)
    if whole.scales is not None:
        np.testing.assert_array_equal(np.concatenate([p.scales for p in parts if p.scales is not None]), whole.scales)


@by_name(list(SCHEMES.values()))
@pytest.mark.parametrize("threads", [None, 1, 2, 3])
def test_stream_gives_every_row_once(scheme: Scheme, threads: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = sample(53, 256, torch.bfloat16)
    whole = encode(weight, scheme)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 5 * 256)
    data = np.zeros_like(whole.data)
    scales = None if whole.scales is None else np.zeros_like(whole.scales)
    taken = np.zeros(53, np.int64)

    def sink(start: int, stop: int, part: Encoded) -> None:
        taken[start:stop] += 1
        data[start:stop] = part.data
        if scales is not None:
            scales[start:stop] = part.scales

    encode_stream(lambda start, stop: weight[start:stop], weight.shape, scheme, sink, threads)
    assert (taken == 1).all()
    np.testing.assert_array_equal(data, whole.data)
    if scales is not None:
        np.testing.assert_array_equal(scales, whole.scales)


@by_name(QUANTIZED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_get_the_smallest_scale(scheme: Scheme, dtype: torch.dtype) -> None:
    weight = torch.zeros(2, 256, dtype=dtype)
    weight[0, 1::2] *= -1  # negative zeros too
    encoded = encode(weight, scheme)
    assert not encoded.data.any()
    assert encoded.scales is not None
    assert (encoded.scales == (2.0**-20 if scheme.block_size else 2.0**-100)).all()
    assert not decode(encoded, scheme, weight.shape).any()


@by_name(BLOCKWISE)
def test_one_block_of_zeros_leaves_its_neighbours_alone(scheme: Scheme) -> None:
    assert scheme.block_size is not None
    weight = torch.ones(1, 3 * scheme.block_size)
    weight[0, scheme.block_size : 2 * scheme.block_size] = 0
    encoded = encode(weight, scheme)
    assert encoded.scales is not None
    np.testing.assert_array_equal(encoded.scales[0] == 2.0**-20, [False, True, False])
    np.testing.assert_array_equal(encoded.data[0].reshape(3, -1)[:, 0], [0x77, 0, 0x77])


@by_name(BLOCKWISE)
def test_block_scales_mean_the_same_in_bfloat16_and_float16(scheme: Scheme) -> None:
    scales = encode(sample(64, 1024), scheme).scales
    assert scales is not None
    as_bfloat16 = torch.from_numpy(scales).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(as_bfloat16, scales.astype(np.float32))
    assert np.unique(scales).size > 100


@by_name(PER_CHANNEL)
@pytest.mark.parametrize("value", [1e-45, 1e-38, 1e-30, 3e38])
def test_extreme_rows_have_normal_scales(scheme: Scheme, value: float) -> None:
    encoded = encode(torch.tensor([[value, -value] + [0.0] * 30]), scheme)
    assert encoded.scales is not None
    assert 2.0**-100 <= encoded.scales[0] < np.inf
    decoded = decode(encoded, scheme, (1, 32))
    assert abs(decoded[0, 0].item() - value) <= encoded.scales[0] / 2


@by_name(BLOCKWISE)
def test_the_largest_block_scale_and_one_beyond(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scheme.block_size is not None
    weight = torch.zeros(5, scheme.block_size)
    weight[3, 1] = -7 * 65280
    encoded = encode(weight, scheme)
    assert encoded.scales is not None
    assert encoded.scales[3, 0] == 65280
    assert decode(encoded, scheme, weight.shape)[3, 1] == -7 * 65280
    weight[3, 1] = -7 * 65536
    for chunk in (1 << 20, 2 * scheme.block_size):
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
        with pytest.raises(RecipeError, match="row 3 needs a scale beyond float16"):
            encode(weight, scheme)


@by_name(list(SCHEMES.values()))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
@pytest.mark.parametrize("columns", [128, 384])
def test_what_is_not_finite_is_refused_with_its_row(scheme: Scheme, value: float, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.ones(40, columns, dtype=torch.float64)
    weight[29, 17] = value
    weight[38, 0] = value
    for chunk in (1 << 20, 4 * columns):
        monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
        with pytest.raises(NonFiniteWeightError, match="row 29 holds NaN or infinity") as caught:
            encode(weight, scheme)
        assert caught.value.row == 29
        assert isinstance(caught.value, CheckpointError)


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_floats_keep_their_shape_and_values(storage: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    encoded = encode(weight, SCHEMES[storage])
    assert encoded.scales is None
    np.testing.assert_array_equal(encoded.data, weight.float().numpy().astype(storage))
    assert decode(encoded, SCHEMES[storage], shape).dtype == torch.float32
    np.testing.assert_array_equal(decode(encoded, SCHEMES[storage], shape).numpy(), encoded.data.astype(np.float32))


def test_float16_limits() -> None:
    weight = torch.zeros(4, 8)
    weight[2, 5] = -65519
    assert encode(weight, SCHEMES["float16"]).data[2, 5] == -65504
    weight[2, 5] = -65520
    with pytest.raises(RecipeError, match="row 2 holds numbers beyond float16"):
        encode(weight, SCHEMES["float16"])
    encode(weight, SCHEMES["float32"])


def test_low_nibble_comes_first() -> None:
    weight = torch.tensor([[1.0, 2.0, -1.0, -7.0, 7.0, 0.0, 0.0, -2.0]])
    encoded = encode(weight, SCHEMES["dynamic_int4_channel"])
    assert encoded.data.tobytes() == bytes([0x21, 0x9F, 0x07, 0xE0])
    assert torch.equal(decode(encoded, SCHEMES["dynamic_int4_channel"], (1, 8)), weight)


def test_every_pair_of_nibbles_survives() -> None:
    values = torch.arange(-7.0, 8.0)
    weight = torch.cartesian_prod(values, values).reshape(1, -1)
    encoded = encode(weight, SCHEMES["dynamic_int4_channel"])
    assert torch.equal(decode(encoded, SCHEMES["dynamic_int4_channel"], weight.shape), weight)


@pytest.mark.filterwarnings("error")
def test_decode_reads_pages_that_cannot_be_written() -> None:
    encoded = encode(torch.ones(2, 32), SCHEMES["dynamic_int4_block32"])
    assert encoded.scales is not None
    encoded.data.flags.writeable = encoded.scales.flags.writeable = False
    assert torch.allclose(decode(encoded, SCHEMES["dynamic_int4_block32"], (2, 32)), torch.ones(2, 32), rtol=0.005)


@by_name(list(SCHEMES.values()))
def test_strides_and_gradients_do_not_matter(scheme: Scheme) -> None:
    weight = sample(128, 128)
    for odd in (
        weight.t().contiguous().t(),
        weight.clone().requires_grad_(),
        torch.nn.Parameter(weight.to(torch.bfloat16).to(torch.float32)),
    ):
        plain = odd.detach().clone(memory_format=torch.contiguous_format)
        before = plain.clone()
        np.testing.assert_array_equal(encode(odd, scheme).data, encode(plain, scheme).data)
        assert torch.equal(plain, before)


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(CheckpointError, match=f"weights of {dtype} cannot be encoded"):
        encode(torch.zeros(2, 32, dtype=dtype), SCHEMES["dynamic_int8"])


def test_shapes_that_do_not_fit_are_refused_before_a_read() -> None:
    def read(start: int, stop: int) -> torch.Tensor:
        raise AssertionError("read")

    with pytest.raises(RecipeError, match="not a multiple of 32"):
        encode_stream(read, (4, 48), SCHEMES["dynamic_int4_block32"], lambda *_: None)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("where", ["read", "sink", "value", "shape"])
def test_an_error_stops_the_stream_and_is_raised(threads: int, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 32)
    reads = []

    def read(start: int, stop: int) -> torch.Tensor:
        reads.append(start)
        if start == 5 and where == "read":
            raise OSError("short read")
        if start == 5 and where == "shape":
            return torch.ones(1, 1)
        return torch.full((stop - start, 32), float("nan") if start == 5 and where == "value" else 1.0)

    def sink(start: int, stop: int, part: Encoded) -> None:
        if start == 5 and where == "sink":
            raise OSError("disk full")

    expected = {
        "read": (OSError, "short read"),
        "sink": (OSError, "disk full"),
        "value": (FlatlmError, "row 5"),
        "shape": (ValueError, r"\(1, 1\)"),
    }
    with pytest.raises(expected[where][0], match=expected[where][1]):
        encode_stream(read, (100_000, 32), SCHEMES["dynamic_int8"], sink, threads)
    assert len(reads) < 90_000


@pytest.fixture
def three_torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_torch_threads")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("fail", [False, True])
def test_torch_threads_are_one_within_and_as_before_after(threads: int, fail: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 32)
    seen, workers = set(), set()
    together = threading.Barrier(threads)

    def read(start: int, stop: int) -> torch.Tensor:
        seen.add(torch.get_num_threads())
        if start < threads:
            together.wait(10)  # so that each thread gets a chunk
        workers.add(threading.get_ident())
        if fail and start == 9:
            raise OSError
        return torch.ones(stop - start, 32)

    try:
        encode_stream(read, (10, 32), SCHEMES["dynamic_int8"], lambda *_: None, threads)
    except OSError:
        assert fail
    assert seen == {1}
    assert len(workers) == threads
    assert torch.get_num_threads() == 3
