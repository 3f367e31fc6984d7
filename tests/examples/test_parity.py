"""Every family against transformers: tiny models, every parameter random, with and without cache, eager and exported."""

from pathlib import Path

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
def eager_error(case: Case, directory: Path) -> float:
    """The largest difference of a logit from the reference's, whether the eager model reads all at once or in steps."""
    reference = make_reference(case, directory)
    model = build_model(directory, kv_cache_max_len=48)
    ids = torch.randint(0, model.config.vocab_size, (1, 40), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    expected = reference(ids.long()).logits[0]
    assert float(expected.std()) > 0.1  # logits that are all alike would prove nothing
    return max(float((logits_in_steps(model, ids, steps) - expected).abs().max()) for steps in ([40], [1] * 40, [17, 1, 1, 21]))


@pytest.mark.parametrize("case", ALL, ids=str)
def test_eager_logits_are_transformers(case: Case, tmp_path: Path) -> None:
    assert eager_error(case, tmp_path) <= TOLERANCE


def exported_report(case: Case, recipe: str, tmp_path: Path, *, decided: bool = False) -> VerificationReport:
    make_reference(case, tmp_path / "checkpoint", decided=decided)
    output = tmp_path / "model.tflite"
    export(ExportRequest(tmp_path / "checkpoint", output, recipe=get_recipe(recipe), prefill_lengths=(4, 16), kv_cache_len=48))
    return verify(output, tmp_path / "checkpoint", tokens=160, against="transformers")


@pytest.mark.slow
@pytest.mark.parametrize("case", EXPORTED, ids=str)
def test_exported_file_is_transformers(case: Case, tmp_path: Path) -> None:
    report = exported_report(case, "none", tmp_path)
    assert report.max_abs_error <= TOLERANCE, report
    assert report.tokens_compared >= 160
    assert report.greedy_tokens_equal == report.greedy_tokens == 32
    assert report.passed


@pytest.mark.slow
@pytest.mark.parametrize("case", EXPORTED, ids=str)
def test_exported_int8_file_is_within_the_recipes_bound(case: Case, tmp_path: Path) -> None:
    report = exported_report(case, "dynamic_int8", tmp_path, decided=True)
    print(report)
    assert report.passed, report
