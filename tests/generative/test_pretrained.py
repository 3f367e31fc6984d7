"""References that transformers loads: those whose weights it would make up are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from flatlm.errors import CheckpointError
from flatlm.generative import reference
from flatlm.generative.encoder_decoders import reference as encoder_decoder_reference
from tests.examples.cases.encoder_decoders import CASES
from tests.examples.cases.gpt2 import CASES as GPT2_CASES
from tests.examples.references import LLAMA_BASE, Case, make_reference

OPENED = {
    "model.layers.1.mlp.up_proj.weight": (Case("llama", LLAMA_BASE), reference.TransformersReference),
    "model.encoder.layers.0.fc1.weight": (
        next(case for case in CASES if case.reference == "BartForConditionalGeneration"),
        encoder_decoder_reference.TransformersReference,
    ),
}


@pytest.mark.parametrize("name", OPENED)
def test_a_weight_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    case, opened = OPENED[name]
    make_reference(case, tmp_path)
    opened(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state[name]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"has no {name}, which {case.reference} has"):
        opened(tmp_path)


def test_a_bias_that_a_model_does_without_is_zero(tmp_path: Path) -> None:
    case = GPT2_CASES[0]
    make_reference(case, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    without = {name: tensor for name, tensor in state.items() if not name.endswith("attn.c_attn.bias")}
    assert len(without) < len(state)
    save_file(without, tmp_path / "model.safetensors", {"format": "pt"})
    ids = [1, 5, 3, 9]
    found = reference.TransformersReference(tmp_path).feed(ids)
    zeros = {name: tensor if name in without else torch.zeros_like(tensor) for name, tensor in state.items()}
    save_file(zeros, tmp_path / "model.safetensors", {"format": "pt"})
    assert np.array_equal(found, reference.TransformersReference(tmp_path).feed(ids))
    assert np.allclose(found, reference.EagerReference(tmp_path, length=16).feed(ids), atol=1e-4)
