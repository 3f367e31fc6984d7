"""Random Hadamard matrices: orthogonal, evenly large, of any size."""

import pytest
import torch

from flatlm.quantize.rotation import random_hadamard


@pytest.mark.parametrize("size", [1, 2, 3, 12, 64, 72, 172, 576])
def test_it_is_orthogonal(size: int) -> None:
    matrix = random_hadamard(size)
    assert matrix.dtype == torch.float32
    assert matrix.shape == (size, size)
    assert float((matrix.double() @ matrix.double().T - torch.eye(size)).abs().max()) < 1e-6


@pytest.mark.parametrize("size", [2, 64, 256])
def test_a_power_of_two_is_hadamards(size: int) -> None:
    """Sylvester's: entries of one size, and no two rows or columns alike up to sign."""
    matrix = random_hadamard(size)
    assert torch.allclose(matrix.abs(), torch.full_like(matrix, size**-0.5))
    assert len({tuple(row.tolist()) for row in (matrix * matrix[0].sign()).sign()}) == size


@pytest.mark.parametrize("size", [96, 172, 576])
def test_a_single_channel_is_spread_over_many(size: int) -> None:
    matrix = random_hadamard(size)
    odd = size
    while odd % 2 == 0:
        odd //= 2
    assert (matrix.count_nonzero(0) == size).all()  # each channel goes to all
    assert float(matrix.abs().max()) <= (odd / size) ** 0.5 + 1e-6


def test_the_seed_decides() -> None:
    assert torch.equal(random_hadamard(48), random_hadamard(48, seed=0))
    assert not torch.equal(random_hadamard(48), random_hadamard(48, seed=1))
    assert not torch.equal(random_hadamard(64), random_hadamard(64, seed=1))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    random_hadamard(48)
    assert torch.equal(torch.get_rng_state(), before)  # nobody else's numbers are drawn
