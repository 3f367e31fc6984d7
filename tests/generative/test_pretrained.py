"""References that transformers loads: those whose weights it would make up are refused."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from flatlm.errors import CheckpointError
from flatlm.generative import reference
from flatlm.generative.encoder_decoders import reference as encoder_decoder_reference
from tests.examples.cases.encoder_decoders import CASES
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
