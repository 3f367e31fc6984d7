from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import flatlm
from flatlm.generative.runner import Runner
from flatlm.utilities.exporter import ExportRequest, export
from tests.generative.toy_model import EOS, Letters, Toy, V, export_toy


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy(seed=0, prefill_logits=False).eval()


@pytest.fixture(scope="session")
def tiny_file(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Signatures prefill_4, prefill_16 (without logits) and decode; S slots."""
    return export_toy(tmp_path_factory.mktemp("tiny") / "tiny.tflite", toy, (4, 16))


@pytest.fixture(scope="session")
def scoring_toy() -> Toy:
    return Toy(seed=1, prefill_logits=True).eval()


@pytest.fixture(scope="session")
def scoring_file(scoring_toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of other weights: signatures prefill_8 (with logits) and decode."""
    return export_toy(tmp_path_factory.mktemp("scoring") / "scoring.tflite", scoring_toy, (8,))


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, which tells stories."""
    out = tmp_path_factory.mktemp("demo") / "demo.litertlm"
    export(ExportRequest(Path(flatlm.__file__).parent / "assets" / "demo_model", out, prefill_lengths=(16,), kv_cache_len=512))
    return out


@pytest.fixture
def letters() -> Letters:
    return Letters()


@pytest.fixture
def random_ids() -> Callable[[int], list[int]]:
    """So many tokens, none of them the end."""

    def make(count: int, seed: int = 0) -> list[int]:
        return np.random.default_rng(seed).integers(EOS + 1, V, count).tolist()

    return make


@pytest.fixture(scope="module")
def opened(tiny_file):
    return Runner.open(tiny_file)


@pytest.fixture
def runner(opened):
    opened.reset()
    return opened
