"""Searched scales: never worse than rounding to the nearest, storable, in range, row by row."""

import pytest
import torch
from torch import Tensor

from flatlm.errors import RecipeError
from flatlm.quantize.carried import IntegerRows
from flatlm.quantize.encode import decode, encode
from flatlm.quantize.scale_search import SHRINK_POWER, Range, largest_scales, round_rows, round_to, search_scales, storable
from flatlm.quantize.schemes import SCHEMES, Scheme, get_scheme

FOUR_BITS = [scheme for scheme in SCHEMES.values() if scheme.storage == "int4"]
ROUNDINGS = ("scale_search", "half_quadratic")
COLUMNS = 128


def by_name(scheme: Scheme) -> str:
    return scheme.name


def random_rows(rows: int = 64, *, seed: int = 0, size: float = 0.02) -> Tensor:
    return size * torch.randn(rows, COLUMNS, generator=torch.Generator().manual_seed(seed))


def outliers() -> Tensor:
    rows = random_rows()
    rows[::3, 5] *= 100
    return rows


def some_zeros() -> Tensor:
    rows = random_rows()
    rows[::2] = 0
    rows[1, :32] = 0
    return rows


WEIGHTS = {
    "normal": random_rows(),
    "outliers": outliers(),
    "zeros": some_zeros(),
    "small": random_rows(size=2e-5),
    "tiny": random_rows(size=1e-7),
    "large": random_rows(size=3e4),
    "alike": torch.full((4, COLUMNS), 0.03),
    "alike_and_negative": torch.full((4, COLUMNS), -0.03),
    "one_number": torch.zeros(4, COLUMNS).index_fill(1, torch.tensor([17]), -0.7),
}


def meaning(found: IntegerRows) -> Tensor:
    """What integers and scales stand for, float64."""
    width = found.integers.shape[1] // found.scales.shape[1]
    return found.integers.double() * found.scales.double().repeat_interleave(width, 1)


def group_errors(weight: Tensor, read: Tensor, scheme: Scheme) -> Tensor:
    """The squared error of each group, float64."""
    return (weight.double() - read.double()).square().reshape(-1, scheme.block_size or COLUMNS).sum(1)


@pytest.mark.parametrize("scheme", FOUR_BITS, ids=by_name)
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_no_group_is_worse_than_rounded_to_the_nearest(weight: Tensor, scheme: Scheme) -> None:
    searched = group_errors(weight, meaning(round_rows(weight, scheme, "scale_search")), scheme)
    nearest = group_errors(weight, decode(encode(weight, scheme), scheme, weight.shape), scheme)
    assert (searched <= nearest * (1 + 1e-5) + 1e-12 * float(weight.double().square().mean())).all()


@pytest.mark.parametrize("scheme", FOUR_BITS, ids=by_name)
def test_the_error_of_normal_weights_is_a_good_deal_smaller(scheme: Scheme) -> None:
    weight = random_rows(256)
    searched = group_errors(weight, meaning(round_rows(weight, scheme, "scale_search")), scheme).sum()
    nearest = group_errors(weight, decode(encode(weight, scheme), scheme, weight.shape), scheme).sum()
    assert searched < 0.9 * nearest


@pytest.mark.parametrize("scheme", FOUR_BITS, ids=by_name)
def test_it_is_near_the_best_of_a_fine_grid(scheme: Scheme) -> None:
    groups = random_rows(16).reshape(-1, scheme.block_size or COLUMNS)
    allowed = Range.of(scheme)
    best = torch.full((len(groups),), torch.inf)
    for ratio in torch.linspace(0.3, 1.1, 2000):
        scales = storable(largest_scales(groups, allowed) * ratio, scheme)
        best = torch.minimum(best, (groups - round_to(groups, scales, allowed) * scales[:, None]).square().sum(1))
    scales = search_scales(groups, scheme)
    found = (groups - round_to(groups, scales, allowed) * scales[:, None]).square().sum(1)
    assert float(found.sum()) < 1.02 * float(best.sum())
    assert (found < 1.15 * best).all()


@pytest.mark.parametrize("scheme", FOUR_BITS, ids=by_name)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_integers_are_in_range_and_scales_can_be_stored(weight: Tensor, rounding: str, scheme: Scheme) -> None:
    found = round_rows(weight, scheme, rounding)
    assert found.integers.dtype == torch.int8
    assert found.integers.shape == weight.shape
    assert int(found.integers.min()) >= (-8 if scheme.block_size else -7)
    assert int(found.integers.max()) <= 7
    assert found.scales.dtype == torch.float32
    assert found.scales.shape == (len(weight), COLUMNS // (scheme.block_size or COLUMNS))
    assert (found.scales > 0).all()
    assert found.scales.isfinite().all()
    if scheme.block_size:
        assert torch.equal(found.scales.to(torch.bfloat16).float(), found.scales)
        assert torch.equal(found.scales.to(torch.float16).float(), found.scales)


def test_blocks_use_minus_eight_and_channels_do_not() -> None:
    weight = random_rows(256)
    lowest = {scheme.name: int(round_rows(weight, scheme, "scale_search").integers.min()) for scheme in FOUR_BITS}
    assert lowest == {"dynamic_int4_block32": -8, "dynamic_int4_block128": -8, "dynamic_int4_channel": -7}
    assert Range.of(get_scheme("dynamic_int8")) == (-127, 127)


@pytest.mark.parametrize("scheme", FOUR_BITS, ids=by_name)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_row_depends_on_nothing_but_itself(rounding: str, scheme: Scheme) -> None:
    weight = outliers()
    whole = round_rows(weight, scheme, rounding)
    for start, stop in ((0, 1), (1, 8), (8, 61), (61, 64)):
        part = round_rows(weight[start:stop], scheme, rounding)
        assert torch.equal(part.integers, whole.integers[start:stop])
        assert torch.equal(part.scales, whole.scales[start:stop])


@pytest.mark.parametrize("scheme", FOUR_BITS, ids=by_name)
@pytest.mark.parametrize("weight", [WEIGHTS["normal"], WEIGHTS["outliers"], WEIGHTS["small"]], ids=["normal", "outliers", "small"])
def test_half_quadratic_scales_have_the_smaller_power_of_the_error(weight: Tensor, scheme: Scheme) -> None:
    def power(rounding: str) -> Tensor:
        error = (weight - meaning(round_rows(weight, scheme, rounding))).abs().pow(SHRINK_POWER)
        return error.reshape(-1, scheme.block_size or COLUMNS).sum(1)

    half, searched = power("half_quadratic"), power("scale_search")
    assert (half <= searched * (1 + 1e-5)).all()
    assert float(half.sum()) < 0.995 * float(searched.sum())


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_zeros_stay_zeros(rounding: str) -> None:
    for scheme in FOUR_BITS:
        found = round_rows(torch.zeros(2, COLUMNS), scheme, rounding)
        assert not found.integers.any()
        assert (found.scales > 0).all()


def test_columns_weigh_what_they_are_said_to() -> None:
    scheme, weight = get_scheme("dynamic_int4_channel"), random_rows(64)
    importance = torch.full((COLUMNS,), 1e-3)
    importance[:8] = 1.0

    def error(scales: Tensor) -> float:
        return float(((weight - round_to(weight, scales, Range.of(scheme)) * scales[:, None]).square() * importance).sum())

    assert error(search_scales(weight, scheme, importance)) < 0.8 * error(search_scales(weight, scheme))
    unused = search_scales(weight, scheme, torch.zeros(COLUMNS))
    assert torch.equal(unused, largest_scales(weight, Range.of(scheme)))


def test_a_scale_beyond_float16_is_refused() -> None:
    with pytest.raises(RecipeError, match="beyond float16"):
        round_rows(torch.full((1, 32), 1e6), get_scheme("dynamic_int4_block32"), "scale_search")
    round_rows(torch.full((1, 32), 1e6), get_scheme("dynamic_int4_channel"), "scale_search")


def test_other_roundings_are_refused() -> None:
    with pytest.raises(RecipeError, match="needs no text"):
        round_rows(random_rows(1), get_scheme("dynamic_int4_block32"), "gptq")
