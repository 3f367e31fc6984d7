"""The generic path: any module, several signatures, one file."""

from pathlib import Path

import numpy as np
import pytest
import torch

import flatlm.convert
from flatlm.errors import OutputError
from tests.models import Signatures


class Scale(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, factor: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scaled": self.linear(x) * factor}


@pytest.fixture(scope="module")
def converted():
    module = Scale()
    x, factor = torch.zeros(2, 4), torch.ones(1)
    short = flatlm.convert.signature("short", module, (x, factor))
    both = short.signature("long", module, sample_kwargs={"x": torch.zeros(5, 4), "factor": factor})
    assert len(short.entries) == 1  # each is a value: the longer one leaves it alone
    return module, both.convert()


def test_a_module_with_two_signatures(converted, tmp_path: Path) -> None:
    module, model = converted
    model.export(tmp_path / "model.tflite")
    file = Signatures(tmp_path / "model.tflite")
    rng = np.random.default_rng(0)
    for name, rows, keys in (("short", 2, ("args_0", "args_1")), ("long", 5, ("x", "factor"))):
        x, factor = rng.standard_normal((rows, 4), dtype=np.float32), np.array([2.5], np.float32)
        expected = module(torch.from_numpy(x), torch.from_numpy(factor))["scaled"].detach().numpy()
        assert np.abs(file.run(name, dict(zip(keys, (x, factor), strict=True)))["scaled"] - expected).max() <= 1e-6


def test_weights_are_shared_by_the_signatures(converted) -> None:
    _, model = converted
    weight = converted[0].linear.weight.detach().numpy().tobytes()
    assert model.content.count(weight) == 1


def test_an_output_directory_that_is_not_there(converted, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        converted[1].export(tmp_path / "nowhere" / "model.tflite")
    assert list(tmp_path.iterdir()) == []
