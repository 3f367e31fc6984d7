"""A GGUF file in the place of a checkpoint directory, to the end."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flatlm.commands.export import export_and_verify
from flatlm.errors import CheckpointError
from flatlm.generative.reference import EagerReference, TransformersReference
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.bundling import bundled_tokenizer
from flatlm.utilities.checkpoints import gguf_file
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.exporter import ExportRequest, plan_export
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from tests.utilities.checkpoints.gguf_models import CASES, Kind, random_model, write_model
from tests.utilities.checkpoints.test_gguf_models import llama3_case
from tests.utilities.tokenizing.test_gguf import bpe_keys

IDS = list(range(3, 43))


def mixed(name: str, values: np.ndarray) -> Kind:
    """The types that a file of llama.cpp mixes."""
    if "attn_" in name:
        return Kind.Q4_0
    return Kind.Q8_0 if "embd" in name else Kind.F16 if "ffn_up" in name else Kind.Q5_1


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Llama, quantized, with Llama 3's scaling and a tokenizer."""
    case, keys = llama3_case(), {f"tokenizer.ggml.{key}": value for key, value in bpe_keys("llama-bpe").items()}
    model = random_model(case, vocab_size=352)
    return write_model(tmp_path / "model.gguf", case, model, mixed, **keys, **{"tokenizer.chat_template": "{{ messages[0].content }}"})


def test_the_eager_model_is_that_of_transformers(file: Path) -> None:
    eager, reference = EagerReference(file, length=64), TransformersReference(file)
    np.testing.assert_allclose(eager.feed(IDS), reference.feed(IDS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_every_family_is_that_of_the_original(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = random_model(case)
    path = write_model(tmp_path / "model.gguf", case, model)
    with torch.inference_mode():
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(EagerReference(path, length=64).feed(IDS), expected, rtol=1e-4, atol=1e-4)


def test_a_broken_map_is_noticed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison would see it if queries and keys were left as llama.cpp keeps them."""
    expected = TransformersReference(file).feed(IDS)
    monkeypatch.setattr(gguf_file._Part, "rows", lambda part, wanted: wanted + part.first)
    assert np.abs(EagerReference(file, length=64).feed(IDS) - expected).max() > 0.1


def test_planning_reads_the_file_alone(file: Path) -> None:
    with open_checkpoint(file) as store:
        plan = plan_export(store, ExportRequest(file, file.with_name("out.tflite")))
        assert (plan.family, plan.config.vocab_size, len(plan.config.blocks)) == ("llama", 352, 2)
        assert plan.weights.weights["blocks.0.attention.qkv.weight"].rows(0, 3).dtype == torch.float32


def test_what_the_model_does_not_use_is_listed(tmp_path: Path) -> None:
    case = replace(CASES["llama"], tables={"blk.0.attn_sinks.weight": np.ones(4)})
    file = write_model(tmp_path / "m.gguf", case, random_model(case))
    with open_checkpoint(file) as store, pytest.raises(CheckpointError, match=r"blk\.0\.attn_sinks\.weight \[4\] is not used") as caught:
        plan_export(store, ExportRequest(file, tmp_path / "out.tflite"))
    assert str(file) in str(caught.value)


def test_a_directory_has_the_last_word_on_configuration_and_tokenizer(file: Path, tmp_path: Path) -> None:
    from_file = ConfigReader.from_directory(tmp_path)
    assert from_file.source == str(file) and from_file.architecture == "LlamaForCausalLM"
    assert Tokenizer.load(tmp_path).encode("Once") == Tokenizer.load(file).encode("Once")
    (tmp_path / "config.json").write_text(json.dumps({**from_file.values, "max_position_embeddings": 32}))
    assert ConfigReader.from_directory(tmp_path).positive_int("max_position_embeddings") == 32
    assert ConfigReader.from_directory(file).positive_int("max_position_embeddings") == 64
    with open_checkpoint(tmp_path) as store:
        assert plan_export(store, ExportRequest(tmp_path, tmp_path / "out.tflite")).config.max_positions == 32


@pytest.mark.slow
def test_exported_and_verified_against_transformers(file: Path, tmp_path: Path) -> None:
    report = export_and_verify(ExportRequest(file, tmp_path / "out.litertlm", get_recipe("none"), (8,)))
    assert report.verification is not None and report.verification["against"] == "transformers"
    assert report.verification["max_abs_error"] < 1e-4 and report.verification["tokens_compared"] >= 256
    text = "Once upon a time"
    assert bundled_tokenizer(tmp_path / "out.litertlm").encode(text) == Tokenizer.load(file).encode(text)
