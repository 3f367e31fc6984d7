"""Every architecture: what llama.cpp's converter wrote comes back under transformers' names, with its values and its configuration."""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flatlm.errors import CheckpointError, ConfigError, FlatlmError
from flatlm.generative.reference import TransformersReference
from flatlm.utilities.checkpoints.gguf_config import llama3_factors, read_config
from flatlm.utilities.checkpoints.gguf_file import GgufCheckpoint
from flatlm.utilities.tokenizing.gguf import read_tokenizer
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from tests.utilities.checkpoints.gguf_models import CASES, LLAMA3, Case, gguf_tensors, metadata_of, random_model, write_gguf, write_model
from tests.utilities.tokenizing.test_gguf import bpe_keys


@pytest.mark.parametrize("name", CASES)
def test_names_and_values_are_those_of_the_original(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = random_model(case)
    state = dict(model.state_dict())
    if getattr(model.config, "tie_word_embeddings", False):
        del state["lm_head.weight"]
    with GgufCheckpoint.open(write_model(tmp_path / "model.gguf", case, model)) as store:
        assert store.tensors.keys() == state.keys()
        for key, value in state.items():
            assert store.tensors[key].shape == tuple(value.shape) and store.tensors[key].dtype == torch.float32
            torch.testing.assert_close(store.read(key), value, rtol=0, atol=3e-7 if case.change == "shift" else 0)
            rows = len(value)
            for start, stop in ((0, 1), (rows // 3, rows // 2 + 1), (rows - 1, rows), (2, 2)):
                assert torch.equal(store.rows(key, start, stop), store.read(key)[start:stop]), key


@pytest.mark.parametrize("name", CASES)
def test_the_configuration_makes_the_same_model(name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    case = CASES[name]
    model = random_model(case)
    file = write_model(tmp_path / "model.gguf", case, model)
    config = read_config(file)
    made = AutoConfig.for_model(config.pop("model_type"), **config)
    unknown = set(config) - set(model.config.to_dict()) - {"rope_theta", "rope_local_base_freq", "rope_scaling", "partial_rotary_factor"}
    assert not unknown - {"attention_bias", "use_sliding_window"}
    again = AutoModelForCausalLM.from_config(made, dtype=torch.float32).eval()
    assert type(again) is type(model) and config["architectures"] == [type(model).__name__]
    with GgufCheckpoint.open(file) as store:
        missing, unexpected = again.load_state_dict({key: store.read(key) for key in store.tensors}, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    again.tie_weights()
    ids = torch.arange(3, 43)[None]
    with torch.inference_mode():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_the_reference_is_the_original(name: str, tmp_path: Path) -> None:
    """By transformers' own reader of GGUF files where that reads the architecture."""
    case = CASES[name]
    model = random_model(case)
    reference = TransformersReference(write_model(tmp_path / "model.gguf", case, model))
    ids = list(range(3, 43))
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(reference.feed(ids), expected, rtol=1e-4, atol=1e-4)


def llama3_case() -> Case:
    factors = llama3_factors(8.0, 32, 10000.0, 16)
    assert 1 < factors[1] < 8  # one of the frequencies lies between
    return Case("llama", "llama", {"rope_parameters": {**LLAMA3, "rope_theta": 10000.0}}, {}, "interleave", {"rope_freqs.weight": factors})


def test_llama_3_scaling_is_found_in_its_table(tmp_path: Path) -> None:
    case = llama3_case()
    file = write_model(tmp_path / "model.gguf", case, random_model(case))
    assert read_config(file)["rope_scaling"] == LLAMA3
    theta = {"rope.freq_base": 500000.0, "rope.dimension_count": 16}
    for factor, context in ((8.0, 8192), (32.0, 8192), (4.0, 4096)):
        table = llama3_factors(factor, context, 500000.0, 128)
        wide = Case("llama", "llama", {"head_dim": 128}, {**theta, "rope.dimension_count": 128}, "interleave", {"rope_freqs.weight": table})
        scaling = read_config(write_model(tmp_path / "wide.gguf", wide, random_model(wide)))["rope_scaling"]
        assert (scaling["factor"], scaling["original_max_position_embeddings"]) == (factor, context)
    for table in (np.ones(8), np.linspace(1, 8, 8), np.ones(7) * 8):
        other = Case("llama", "llama", {}, {}, "interleave", {"rope_freqs.weight": table})
        file = write_model(tmp_path / "other.gguf", other, random_model(other))
        if table[-1] == 1:
            assert "rope_scaling" not in read_config(file)
        else:
            with pytest.raises(ConfigError, match=r"rope_freqs\.weight holds factors .* do not follow Llama 3's rule"):
                read_config(file)


def test_llama_3_factors_are_those_of_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {**LLAMA3, "rope_theta": 500000.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, max_position_embeddings=131072, rope_parameters=parameters)
    inverse, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 500000.0 ** -(torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    torch.testing.assert_close(plain / llama3_factors(8.0, 8192, 500000.0, 128), inverse.double(), rtol=1e-5, atol=0)


def test_other_scalings(tmp_path: Path) -> None:
    for arch, metadata, expected in (
        ("qwen2", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ("qwen2", {"rope.scaling.type": "none", "rope.scaling.finetuned": False}, None),
        (
            "qwen2",
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
    ):
        case = Case(arch, arch, {}, metadata)
        assert read_config(write_model(tmp_path / "m.gguf", case, random_model(case))).get("rope_scaling") == expected
    tables = {"rope_factors_short.weight": np.full(8, 1.5), "rope_factors_long.weight": np.full(8, 4.0)}
    metadata = {"rope.dimension_count": 16, "rope.scaling.original_context_length": 32, "rope.scaling.attn_factor": 1.0954451}
    case = Case("phi3", "phi3", {}, metadata, "", tables)
    config = read_config(write_model(tmp_path / "m.gguf", case, random_model(case)))
    assert config["rope_scaling"] == {"rope_type": "longrope", "short_factor": [1.5] * 8, "long_factor": [4.0] * 8}
    assert (config["original_max_position_embeddings"], config["max_position_embeddings"]) == (32, 64)


@pytest.mark.parametrize(
    ("name", "metadata", "what"),
    [
        ("llama", {"expert_count": 8, "logit_scale": 0.5}, r"does not know .*llama\.expert_count = 8, llama\.logit_scale = 0\.5"),
        ("qwen2", {"attention.clamp_kqv": 8.0}, r"qwen2\.attention\.clamp_kqv = 8"),
        ("llama", {"attention.value_length": 8}, r"llama\.attention\.value_length = 8 differs from the 16"),
        ("llama", {"rope.dimension_count": 8}, r"llama\.rope\.dimension_count = 8 differs from the 16"),
        (
            "qwen2",
            {"attention.key_length": 32, "attention.value_length": 32},
            r"is not the width 64 divided by 4 heads: qwen2 has no other",
        ),
        ("llama", {"feed_forward_length": [96, 64]}, r"feed_forward_length = \[96 64\] differs by layer"),
        ("llama", {"rope.freq_base": "big"}, r"freq_base = big must be a number"),
        ("llama", {"rope.scaling.type": "su"}, r"rope\.scaling\.type = su is not supported"),
        ("llama", {"attention.causal": False}, r"attention\.causal = False is not supported"),
        ("llama", {"attention.layer_norm_rms_epsilon": float("nan")}, r"layer_norm_rms_epsilon = nan must be a number"),
        ("llama", {"attention.head_count": 0}, r"head_count = 0"),
        ("gpt2", {"attention.head_count": 0}, r"gpt2\.attention\.head_count = 0 must be positive"),
        ("qwen2", {"block_count": 4_000_000_000}, r"block_count = 4000000000 does not fit the file, which has tensors of 2 layers"),
        ("qwen2", {"rope.freq_base": -1.0}, r"freq_base = -1\.0 must be positive"),
        ("gpt2", {"attention.head_count_kv": 2}, r"gpt2 has no other"),
    ],
)
def test_metadata_that_is_not_understood_is_refused(name: str, metadata: dict[str, Any], what: str, tmp_path: Path) -> None:
    case = CASES[name]
    file = write_model(tmp_path / "m.gguf", case, random_model(case), **{f"{case.arch}.{key}": value for key, value in metadata.items()})
    with pytest.raises((ConfigError, CheckpointError), match=what) as caught:
        read_config(file)
    assert str(file) in str(caught.value)


def test_a_missing_key_and_numbers_by_layer(tmp_path: Path) -> None:
    case = CASES["llama"]
    model = random_model(case)
    metadata, tensors = metadata_of(case, model), gguf_tensors(case, model)
    by_layer = metadata | {"llama.attention.head_count_kv": [2, 2], "llama.feed_forward_length": [96, 96]}
    config = read_config(write_gguf(tmp_path / "m.gguf", by_layer, tensors))
    assert (config["num_key_value_heads"], config["intermediate_size"], config["rms_norm_eps"]) == (2, 96, 1e-6)
    del metadata["llama.context_length"]
    with pytest.raises(ConfigError, match=r"has no llama\.context_length: it is needed"):
        read_config(write_gguf(tmp_path / "m.gguf", metadata, tensors))
    del tensors["token_embd.weight"]
    with pytest.raises(ConfigError, match=r"has no tensor token_embd\.weight"):
        read_config(write_gguf(tmp_path / "m.gguf", metadata | {"llama.context_length": 64}, tensors))
    file = write_gguf(tmp_path / "cut.gguf", metadata, tensors)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="is truncated or corrupt"):
        read_config(file)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_happens_to_metadata_it_is_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    case, keys = llama3_case(), {f"tokenizer.ggml.{key}": value for key, value in bpe_keys("llama-bpe").items()}
    clean = tmp_path / "clean.gguf"
    if not clean.exists():
        write_model(clean, case, random_model(case), **keys)
    content = bytearray(clean.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 1200))] = data.draw(st.integers(0, 255))
    file = tmp_path / "damaged.gguf"
    file.write_bytes(content)
    for read in (read_config, read_tokenizer, Tokenizer.load):
        with contextlib.suppress(FlatlmError):
            read(file)
