"""GPTQ and coordinate descent: against brute force on tiny problems, against rounding to the nearest on larger ones."""

import itertools

import pytest
import torch
from torch import Tensor

from flatlm.quantize import gptq
from flatlm.quantize.carried import IntegerRows
from flatlm.quantize.encode import decode, encode
from flatlm.quantize.gptq import carry_error, damp, solve
from flatlm.quantize.scale_search import Range, round_rows
from flatlm.quantize.schemes import SCHEMES, Scheme, get_scheme

CHANNEL = get_scheme("dynamic_int4_channel")
TINY = Scheme("int4_block4", "int4", block_size=4, compute="dynamic")
ALL = [scheme for scheme in SCHEMES.values() if scheme.quantized and scheme.compute == "dynamic"]


def by_name(scheme: Scheme) -> str:
    return scheme.name


def inputs(columns: int, *, tokens: int = 1024, seed: int = 0) -> Tensor:
    """Correlated, of sizes that differ by an order of magnitude, [tokens, C]."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, max(2, columns // 4), generator=generator) @ torch.randn(max(2, columns // 4), columns, generator=generator)
    return (mixed + 0.5 * torch.randn(tokens, columns, generator=generator)) * torch.logspace(-0.5, 0.5, columns)[
        torch.randperm(columns, generator=generator)
    ]


def hessian_of(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


def weights(rows: int, columns: int, *, seed: int = 1) -> Tensor:
    return 0.05 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def meaning(found: IntegerRows) -> Tensor:
    return found.integers.float() * found.scales.repeat_interleave(found.integers.shape[1] // found.scales.shape[1], 1)


def error_of(weight: Tensor, read: Tensor, hessian: Tensor) -> float:
    error = (weight - read).double()
    return float(((error @ hessian.double()) * error).sum())


@pytest.mark.parametrize("scheme", ALL, ids=by_name)
@pytest.mark.parametrize("seed", range(3))
def test_the_layer_keeps_more_of_what_it_computes(seed: int, scheme: Scheme) -> None:
    """Than rounded to the nearest, and than with the best scales; a fifth of the error is typical here, and far less than half is sure."""
    x = inputs(256, seed=seed)
    weight, hessian = weights(32, 256, seed=seed), hessian_of(x)
    solved = error_of(weight, meaning(solve(weight, hessian, scheme).rows), hessian)
    nearest = error_of(weight, decode(encode(weight, scheme), scheme, weight.shape), hessian)
    assert solved < 0.5 * nearest
    if scheme.storage == "int4":
        assert solved < 0.5 * error_of(weight, meaning(round_rows(weight, scheme, "scale_search")), hessian)
    assert solved == pytest.approx(float((x @ (weight - meaning(solve(weight, hessian, scheme).rows)).T).square().mean(0).sum()), rel=1e-2)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scheme", [CHANNEL, TINY], ids=by_name)
def test_it_is_near_the_best_of_all_integers(scheme: Scheme, seed: int) -> None:
    """All integers of a row of 4 are tried with the scale that was found. Each row is at its best, or next to it."""
    weight, hessian = weights(1, 4, seed=seed), damp(hessian_of(inputs(4, seed=seed)), gptq.DAMPING)
    solution = solve(weight, hessian, scheme, damping=0.0)
    allowed = Range.of(scheme)
    every = torch.tensor(list(itertools.product(range(allowed.lowest, allowed.highest + 1), repeat=4)), dtype=torch.float32)
    errors = weight - every * solution.rows.scales
    best = float(((errors @ hessian) * errors).sum(1).min())
    nearest = error_of(weight, decode(encode(weight, CHANNEL), CHANNEL, weight.shape), hessian)
    assert solution.error <= max(2.0 * best, 0.2 * nearest)


def test_it_is_most_often_the_best_of_all_integers() -> None:
    every = torch.tensor(list(itertools.product(range(-7, 8), repeat=4)), dtype=torch.float32)
    found = 0
    for seed in range(40):
        weight, hessian = weights(1, 4, seed=seed), damp(hessian_of(inputs(4, seed=seed)), gptq.DAMPING)
        solution = solve(weight, hessian, CHANNEL, damping=0.0)
        errors = weight - every * solution.rows.scales
        found += solution.error <= float(((errors @ hessian) * errors).sum(1).min()) * 1.001
    assert found >= 24


@pytest.mark.parametrize("scheme", ALL, ids=by_name)
def test_no_step_makes_the_error_larger(scheme: Scheme) -> None:
    weight = weights(16, 256)
    problem = gptq._Problem(weight, damp(hessian_of(inputs(256)), gptq.DAMPING), scheme)
    scales = problem.first_scales()
    integers = problem.one_by_one(scales)
    errors = [problem.error(integers, scales)]
    for _ in range(6):
        scales = problem.refit(integers, scales)
        errors.append(problem.error(integers, scales))
        integers = problem.sweep(integers, scales)
        errors.append(problem.error(integers, scales))
    for before, after in itertools.pairwise(errors):
        assert after <= before * (1 + 1e-4)
    assert errors[-1] < 0.98 * errors[0]


def test_a_sweep_leaves_no_single_integer_that_could_be_better() -> None:
    weight = weights(4, 64)
    problem = gptq._Problem(weight, damp(hessian_of(inputs(64)), gptq.DAMPING), CHANNEL)
    scales = problem.first_scales()
    integers = problem.one_by_one(scales)
    for _ in range(50):
        integers = problem.sweep(integers, scales)
    least = problem.error(integers, scales)
    for row, column, step in itertools.product(range(4), range(64), (-1, 1)):
        other = integers.clone()
        other[row, column] = (other[row, column] + step).clamp(*problem.allowed)
        assert problem.error(other, scales) >= least * (1 - 1e-5)


def test_refitted_scales_are_the_best_for_their_integers() -> None:
    weight = weights(4, 64)
    problem = gptq._Problem(weight, damp(hessian_of(inputs(64)), gptq.DAMPING), CHANNEL)
    integers = problem.one_by_one(problem.first_scales())
    scales = problem.refit(integers, problem.first_scales())
    for factor in (0.999, 1.001):
        assert problem.error(integers, scales) <= problem.error(integers, scales * factor)


@pytest.mark.parametrize("name", ["dynamic_int4_block32", "dynamic_int4_block128"])
def test_scales_stay_with_their_columns_when_the_most_used_come_first(name: str) -> None:
    """Blocks whose weights differ a hundredfold in size, the small ones read the most: a scale in another's place would show."""
    scheme = get_scheme(name)
    size = torch.ones(512)
    size[128:256], size[384:] = 0.01, 10.0
    weight = weights(16, 512) * size
    hessian = hessian_of(inputs(512) / size)
    solution = solve(weight, hessian, scheme)
    blocks = weight.reshape(16, -1, scheme.block_size or 1)
    assert solution.rows.scales.shape == blocks.shape[:2]
    ratio = solution.rows.scales * 7 / blocks.abs().amax(2)
    assert (ratio > 0.3).all()
    assert (ratio < 2).all()
    assert torch.equal(solution.rows.scales.to(torch.bfloat16).float(), solution.rows.scales)
    error = (weight - meaning(solution.rows)).reshape(blocks.shape).square().sum(2) / blocks.square().sum(2)
    assert float(error.max()) < 0.6


@pytest.mark.parametrize("scheme", ALL, ids=by_name)
def test_integers_are_in_range(scheme: Scheme) -> None:
    weight = weights(16, 128)
    weight[:, 3] *= 100
    rows = solve(weight, hessian_of(inputs(128)), scheme).rows
    assert rows.integers.dtype == torch.int8
    assert rows.scales.dtype == torch.float32
    assert int(rows.integers.min()) >= -scheme.levels - (scheme.storage == "int4" and scheme.block_size is not None)
    assert int(rows.integers.max()) <= scheme.levels


def test_columns_that_the_text_never_uses_are_rounded_as_they_are() -> None:
    x = inputs(128)
    x[:, 40:72] = 0
    weight = weights(8, 128)
    read = meaning(solve(weight, hessian_of(x), get_scheme("dynamic_int4_block32")).rows)
    assert read.isfinite().all()
    error = (weight - read)[:, 40:72].square().mean() / weight[:, 40:72].square().mean()
    assert float(error) < 0.05


@pytest.mark.parametrize("scheme", ALL, ids=by_name)
def test_text_that_never_reached_the_layer_is_as_good_as_none(scheme: Scheme) -> None:
    weight = weights(8, 128)
    solution = solve(weight, torch.zeros(128, 128), scheme)
    nearest = error_of(weight, decode(encode(weight, scheme), scheme, weight.shape), torch.eye(128))
    assert error_of(weight, meaning(solution.rows), torch.eye(128)) <= nearest * (1 + 1e-5)


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_singular_hessian_is_enough(tokens: int) -> None:
    """Fewer tokens than columns: what they say is kept, the rest stays near."""
    x = inputs(128, tokens=tokens)
    weight = weights(8, 128)
    for scheme in (CHANNEL, get_scheme("dynamic_int4_block32")):
        read = meaning(solve(weight, hessian_of(x), scheme).rows)
        nearest = decode(encode(weight, scheme), scheme, weight.shape)
        assert error_of(weight, read, hessian_of(x)) < 0.2 * error_of(weight, nearest, hessian_of(x))
        assert float((weight - read).square().sum()) < 4 * float((weight - nearest).square().sum())


def test_inputs_of_any_size_do() -> None:
    """A Hessian that float32 cannot see as positive definite is damped until it can."""
    x = inputs(128)
    x[:, 7] *= 3e5
    for factor in (1e-9, 1.0, 1e9):
        hessian = hessian_of(x * factor)
        solution = solve(weights(4, 128), hessian, CHANNEL, damping=1e-9)
        assert solution.rows.scales.isfinite().all()
        assert (solution.rows.scales > 0).all()
        assert carry_error(weights(4, 128), hessian, hessian).isfinite().all()


def test_weights_of_zeros_stay_zeros() -> None:
    weight = weights(4, 64)
    weight[1] = 0
    for scheme in (CHANNEL, get_scheme("dynamic_int4_block32")):
        solution = solve(weight, hessian_of(inputs(64)), scheme)
        assert not solution.rows.integers[1].any()
        assert (solution.rows.scales > 0).all()


def test_all_of_the_error_before_it_is_carried_by_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "DAMPING", 1e-6)
    x = inputs(32)
    y = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5)) * x.std(0)
    weight = weights(8, 32)
    missing, hessian = (x - y).T @ y / len(y), hessian_of(y)
    expected = torch.linalg.lstsq(y.double(), x.double() @ weight.double().T).solution.T
    found = carry_error(weight, hessian, missing, share=1.0)
    assert float((found - expected).abs().max()) < 5e-4 * float(expected.abs().max())
    assert float((found - weight).abs().max()) > 0.1 * float(weight.abs().max())
    half = carry_error(weight, hessian, missing, share=0.5)
    assert torch.allclose(half, (found + weight) / 2, atol=1e-6)
    errors = [float((x @ weight.T - y @ each.T).square().sum()) for each in (found, half, weight)]
    assert errors == sorted(errors)


def test_nothing_is_carried_where_nothing_was_lost() -> None:
    weight = weights(4, 32)
    assert torch.equal(carry_error(weight, hessian_of(inputs(32)), torch.zeros(32, 32)), weight)
    assert torch.equal(carry_error(weight, torch.zeros(32, 32), torch.zeros(32, 32)), weight)


def test_columns_at_once_are_columns_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passing errors on in batches only saves time: rounding, a sweep, whatever their width."""
    problem = gptq._Problem(weights(8, 256), damp(hessian_of(inputs(256)), gptq.DAMPING), CHANNEL)
    scales = problem.first_scales()
    found = []
    for width in (1, 64, 1000):
        monkeypatch.setattr(gptq, "COLUMNS_AT_ONCE", width)
        rounded = problem.one_by_one(scales)
        found.append((rounded, problem.sweep(found[0][0] if found else rounded, scales)))
    for rounded, swept in found[1:]:  # but for ties that float noise decides, which change what comes after them in a row
        assert float((rounded == found[0][0]).float().mean()) > 0.97
        assert float((swept == found[0][1]).float().mean()) > 0.97


def test_each_scale_is_refitted_after_those_before_it() -> None:
    """Blocks depend on one another: as if the error were computed anew for each."""
    scheme = get_scheme("dynamic_int4_block32")
    problem = gptq._Problem(weights(4, 128), damp(hessian_of(inputs(128)), gptq.DAMPING), scheme)
    expected = problem.first_scales()
    integers = problem.one_by_one(expected) * 0.5
    found = problem.refit(integers.round(), expected)
    for group in range(4):
        own = torch.zeros_like(integers)
        own[:, group * 32 : group * 32 + 32] = integers.round()[:, group * 32 : group * 32 + 32]
        error = problem.weight - integers.round() * problem.spread(expected)
        own_curvature = ((own @ problem.hessian) * own).sum(1)
        better = expected[:, group] + ((error @ problem.hessian) * own).sum(1) / own_curvature
        expected[:, group] = gptq.storable(better, scheme)
    assert torch.allclose(found, expected, rtol=2**-7)
    assert float((found == expected).float().mean()) > 0.8


def test_what_is_hardly_not_positive_definite_is_damped() -> None:
    x = inputs(32, tokens=4).double()
    matrix = (x.T @ x / 4 - 1e-5 * torch.eye(32) * x.square().mean()).float()
    assert torch.linalg.cholesky_ex(matrix).info > 0
    lower = gptq._factor(matrix)
    assert float((lower @ lower.T - matrix).abs().max()) < 0.01 * float(matrix.diagonal().mean())
    with pytest.raises(ArithmeticError):
        gptq._factor(-torch.eye(4))
