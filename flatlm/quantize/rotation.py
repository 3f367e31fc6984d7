"""Random orthogonal matrices that spread what single channels hold over all of them."""

import torch
from torch import Tensor


def random_hadamard(size: int, seed: int = 0) -> Tensor:
    """An orthogonal matrix [size, size] float32 whose entries are about equally large: signs times a Hadamard matrix (Sylvester's).

    For a size that is an odd number times a power of two, the Kronecker product with a random orthogonal matrix of the odd one's size:
    it is multiplied into weights before the export, so that no fast transform is needed.
    """
    generator = torch.Generator().manual_seed(seed)
    odd = size
    while odd % 2 == 0:
        odd //= 2
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) * odd < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) / 2**0.5
    if odd > 1:
        spread = torch.linalg.qr(torch.randn(odd, odd, generator=generator, dtype=torch.float64))[0]
        matrix = torch.kron(matrix, spread.contiguous())  # qr gives columns, of which kron takes no views
    signs = torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1.0
    return (matrix * signs[:, None]).to(torch.float32)
