"""Every family against transformers: tiny models, every parameter random, with and without cache, eager and exported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from flatlm.generative.verify import VerificationReport, verify
from flatlm.layers.kv_cache import empty_caches
from flatlm.layers.model import Decoder
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.example import build_model
from flatlm.utilities.exporter import ExportRequest, export
from tests.examples.cases import ALL
from tests.examples.references import Case, make_reference

TOLERANCE = 1e-4
STEPS = ([40], [1] * 40, [17, 1, 1, 21])
"""How many of 40 ids the eager model reads at once."""
EXPORTED = [case for case in ALL if case.exported]


def logits_in_steps(model: Decoder, ids: torch.Tensor, steps: list[int]) -> torch.Tensor:
    """Logits [T, V] of an eager model that reads the ids a few at a time."""
    caches, position, out = empty_caches(model.config, model.geometry), 0, []
    for step in steps:
        logits, caches = model(ids[:, position : position + step], torch.arange(position, position + step, dtype=torch.int32), caches)
        out.append(logits[0])
        position += step
    return torch.cat(out)


@torch.inference_mode()
def eager_error(reference: Any, directory: Path, *, steps: Sequence[list[int]] = STEPS) -> float:
    """The largest difference of a logit of the eager model from the reference's that was saved there, however it reads 40 ids."""
    model = build_model(directory, kv_cache_max_len=48)
    ids = torch.randint(0, model.config.vocab_size, (1, 40), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    expected = reference(ids.long()).logits[0]
    assert float(expected.std()) > 0.1  # logits that are all alike would prove nothing
    return max(float((logits_in_steps(model, ids, some) - expected).abs().max()) for some in steps)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_eager_logits_are_transformers(case: Case, tmp_path: Path) -> None:
    assert eager_error(make_reference(case, tmp_path), tmp_path) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("case", EXPORTED, ids=str)
def test_exported_files_are_transformers(case: Case, tmp_path: Path) -> None:
    """In float32 to 1e-4, with the same 32 greedy tokens; in int8 within the recipe's bound."""

    def report(recipe: str) -> VerificationReport:
        checkpoint, output = tmp_path / f"checkpoint_{recipe}", tmp_path / f"{recipe}.tflite"
        make_reference(case, checkpoint, decided=recipe != "none")
        export(ExportRequest(checkpoint, output, get_recipe(recipe), (8,), 48))
        return verify(output, checkpoint, tokens=160, against="transformers")

    exact, rounded = report("none"), report("dynamic_int8")
    assert exact.max_abs_error <= TOLERANCE, exact
    assert exact.tokens_compared >= 160
    assert exact.greedy_tokens_equal == exact.greedy_tokens == 32
    assert exact.passed
    assert rounded.passed, rounded
    assert rounded.mean_kl > 0  # it was rounded
