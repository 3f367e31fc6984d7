"""Encoders against transformers: tiny models, every parameter random, padding of every length in one batch, every head."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flatlm.generative.encoders.runner import EncoderRunner
from flatlm.generative.verify import verify
from flatlm.layers.encoder import Encoder
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.example import build_model
from flatlm.utilities.exporter import ExportRequest, export
from tests.examples.cases.encoders import CASES
from tests.examples.references import Case, make_reference

TOLERANCE = 2e-5
LENGTH = 20
ALWAYS = ("bert-masked_lm", "albert-blocks_in_a_group", "roberta-classification")
"""Exported in the default run too; the others with the slow tests."""
EXPORTED = [pytest.param(case, id=str(case), marks=() if str(case) in ALWAYS else pytest.mark.slow) for case in CASES if case.exported]


def padded_batch(model: Encoder, reference: Any, *, seed: int = 3) -> dict[str, Tensor]:
    """A text of every number of real tokens from 1 to LENGTH, the padding after or (in every second one) before it; an unusual pad id.

    One text has the padding's id among its real tokens, as a text may.
    """
    generator, pad = torch.Generator().manual_seed(seed), reference.config.pad_token_id
    tokens = torch.randint(0, model.config.vocab_size, (LENGTH, LENGTH), generator=generator)
    tokens[tokens == pad] = pad + 1
    mask = torch.arange(LENGTH)[None] < torch.arange(1, LENGTH + 1)[:, None]
    mask[::2] = mask[::2].flip(1)
    tokens[~mask] = pad
    tokens[-1, 7] = pad
    types = torch.randint(0, max(model.config.token_types, 1), (LENGTH, LENGTH), generator=generator)
    return {"tokens": tokens.to(torch.int32), "mask": mask.to(torch.float32), "token_types": types.to(torch.int32)}


def expected_outputs(reference: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What transformers' class gives, by our names."""
    inputs = {"input_ids": batch["tokens"].long(), "attention_mask": batch["mask"].long()}
    if getattr(reference.config, "type_vocab_size", 0):
        inputs["token_type_ids"] = batch["token_types"].long()
    out = reference(**inputs)
    if "last_hidden_state" in out:
        pooled = getattr(out, "pooler_output", None)
        return {"hidden_states": out.last_hidden_state} | ({} if pooled is None else {"pooled": pooled})
    if "start_logits" in out:
        return {"logits": torch.stack([out.start_logits, out.end_logits], -1)}
    logits = out.prediction_logits if "prediction_logits" in out else out.logits
    return {"logits": logits[..., None] if type(reference).__name__ == "ElectraForPreTraining" else logits}


@torch.inference_mode()
def eager_error(reference: Any, directory: Path) -> float:
    """The largest difference of a number of the eager model's from the reference's, where a token is real."""
    model = build_model(directory)
    batch = padded_batch(model, reference)
    expected, got = expected_outputs(reference, batch), model(**batch)
    assert expected.keys() == got.keys()
    worst = 0.0
    for name, values in expected.items():
        real = batch["mask"].bool() if values.dim() == 3 else slice(None)
        assert float(values[real].std()) > 0.02  # numbers that are all alike would prove nothing
        worst = max(worst, float((values[real] - got[name][real]).abs().max()))
    return worst


@pytest.mark.parametrize("case", CASES, ids=str)
def test_eager_outputs_are_transformers(case: Case, tmp_path: Path) -> None:
    assert eager_error(make_reference(case, tmp_path), tmp_path) <= TOLERANCE


@torch.inference_mode()
def exported_error(reference: Any, file: Path) -> float:
    """The same of a file, for a text of every number of tokens that it reads, each padded to the shortest signature that it fits."""
    generator, worst = torch.Generator().manual_seed(5), 0.0
    with EncoderRunner.open(file, threads=1) as runner:
        for count in range(1, runner.file.longest + 1):
            tokens = torch.randint(0, runner.file.vocab_size, (1, count), generator=generator)
            types = torch.randint(0, max(runner.file.token_types, 1), (1, count), generator=generator)
            expected = expected_outputs(reference, {"tokens": tokens, "mask": torch.ones(1, count), "token_types": types})
            got = runner.run(tokens[0].tolist(), types[0].tolist())
            assert expected.keys() == got.keys()
            worst = max(worst, *(float((values[0] - torch.from_numpy(got[name])).abs().max()) for name, values in expected.items()))
    return worst


@pytest.mark.parametrize("case", EXPORTED)
def test_exported_files_are_transformers(case: Case, tmp_path: Path) -> None:
    """In float32 to 1e-4 whatever the padding; in int8 within the recipe's bound."""
    checkpoint = tmp_path / "checkpoint"
    reference = make_reference(case, checkpoint)
    reports = {}
    for recipe in ("none", "dynamic_int8"):
        file = tmp_path / f"{recipe}.tflite"
        export(ExportRequest(checkpoint, file, get_recipe(recipe), (8, LENGTH)))
        reports[recipe] = verify(file, checkpoint, tokens=200, against="transformers")
    assert exported_error(reference, tmp_path / "none.tflite") <= 1e-4
    assert reports["none"].passed, reports["none"]
    assert reports["none"].tokens_compared >= 200
    assert reports["dynamic_int8"].passed, reports["dynamic_int8"]
    assert reports["dynamic_int8"].max_abs_error > 1e-3  # it was rounded
