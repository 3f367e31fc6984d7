"""torchao's tensors, flattened as transformers saves them: against torchao itself, and what is not supported by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.directory import Checkpoint
from flatlm.utilities.checkpoints.quantized import IntegerStore, open_quantized
from tests.quantized_checkpoints import random_linear, save

SETTINGS = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}}}


def made_by_torchao(directory: Path, config: Any) -> tuple[IntegerStore, torch.Tensor]:
    """A checkpoint that torchao quantized, and what torchao dequantizes it to."""
    torchao = pytest.importorskip("torchao.quantization")
    flatten = pytest.importorskip("torchao.prototype.safetensors.safetensors_support").flatten_tensor_state_dict
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(96, 40))
    torchao.quantize_(model, config(torchao))
    tensors, metadata = flatten(model.state_dict())
    store = open_quantized(Checkpoint.open(save(directory, tensors, SETTINGS, **metadata)))
    assert isinstance(store, IntegerStore)
    return store, model[0].weight.dequantize()


CONFIGS = {
    "int8": (lambda ao: ao.Int8WeightOnlyConfig(), 8, None),
    "int8_groups": (lambda ao: ao.Int8WeightOnlyConfig(granularity=ao.PerGroup(32)), 8, 32),
    "int8_dynamic": (lambda ao: ao.Int8DynamicActivationInt8WeightConfig(), 8, None),
    "int4": (lambda ao: ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(32)), 4, 32),
    "int4_channel": (lambda ao: ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerAxis(0)), 4, None),
    "int4_dynamic": (
        lambda ao: ao.Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=ao.PerGroup(32)),
        4,
        32,
    ),
    "int4_asymmetric": (
        lambda ao: ao.IntxWeightOnlyConfig(
            weight_dtype=torch.int4, granularity=ao.PerGroup(32), mapping_type=ao.quant_primitives.MappingType.ASYMMETRIC
        ),
        4,
        32,
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_values_are_those_of_torchao(name: str, tmp_path: Path) -> None:
    config, bits, block_size = CONFIGS[name]
    store, expected = made_by_torchao(tmp_path, config)
    assert store.tensors.keys() == {"0.weight", "0.bias"}
    assert torch.equal(store.read("0.weight"), expected)
    assert torch.equal(store.rows("0.weight", 3, 20), expected[3:20])
    stored = store.stored_integers("0.weight")
    assert stored is not None
    assert (stored.bits, stored.block_size) == (bits, block_size)
    assert stored.obstacle == ("asymmetric" if "asymmetric" in name else None)


def flat_int4(tensors: dict[str, torch.Tensor], described: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """An Int4Tensor, which torchao itself makes on a GPU only."""
    linear = random_linear(40, 96, group_size=32)
    low, high = linear.integers[:, ::2] & 15, linear.integers[:, 1::2] & 15
    packed = (low | high << 4).to(torch.uint8).view(torch.int8)
    parts = {"a._weight_qdata": packed, "a._weight_scale": linear.scales.t(), "a._weight_zero_point": torch.full((3, 40), 0.25)}
    data = {"block_size": [1, 32], "shape": [40, 96], "activation_dtype": None}
    plain = {"_type": "Int4Tensor", "_data": data, "_tensor_data_names": ["qdata", "scale", "zero_point"]}
    return parts | tensors, {"tensor_names": json.dumps(["a.weight"]), "a.weight": json.dumps(plain | described)}


def test_int4_with_zeros_in_the_weights_own_units(tmp_path: Path) -> None:
    linear = random_linear(40, 96, group_size=32)
    tensors, metadata = flat_int4({}, {})
    store = open_quantized(Checkpoint.open(save(tmp_path / "zeros", tensors, SETTINGS, **metadata)))
    assert isinstance(store, IntegerStore)
    assert torch.equal(store.read("a.weight"), linear.values + 0.25)
    assert torch.equal(store.rows("a.weight", 7, 19), linear.values[7:19] + 0.25)
    assert store.stored_integers("a.weight").obstacle == "asymmetric"
    tensors, metadata = flat_int4({"a._weight_zero_point": torch.zeros(3, 40)}, {})
    store = open_quantized(Checkpoint.open(save(tmp_path / "none", tensors, SETTINGS, **metadata)))
    assert isinstance(store, IntegerStore)
    assert torch.equal(store.integer_rows("a.weight", 7, 19).integers, linear.integers[7:19].to(torch.int8))


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "kind": ({}, {"_type": "Int4TilePackedTo4dTensor"}, "a.weight is of torchao's Int4TilePackedTo4dTensor.*supported are Int4Tensor"),
    "prescale": ({}, {"_tensor_data_names": ["qdata", "scale", "zero_point", "act_pre_scale"]}, "a.weight has act_pre_scale"),
    "block": ({}, {"_data": {"block_size": [2, 32]}}, r"a.weight.*block_size \[2, 32\].*not supported"),
    "attribute": ({}, {"_data": {"block_size": [1, 32], "twist": 1}}, "a.weight has twist"),
    "description": ({}, {"_data": None}, "a.weight has no description"),
    "scale": ({"a._weight_scale": torch.ones(3, 41)}, {}, r"a._weight_scale has shape \[3, 41\].*needs \[3, 40\]"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_read_is_refused_by_name(what: str, tmp_path: Path) -> None:
    changed, described, message = BAD[what]
    tensors, metadata = flat_int4(changed, described)
    directory = save(tmp_path, tensors, SETTINGS, **metadata)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_quantized(Checkpoint.open(directory))
    assert str(tmp_path / "model.safetensors") in str(caught.value)


def test_files_without_a_description_are_refused(tmp_path: Path) -> None:
    tensors, _ = flat_int4({}, {})
    with pytest.raises(CheckpointError, match=r"do not describe any torchao tensor.*save it again"):
        open_quantized(Checkpoint.open(save(tmp_path / "none", tensors, SETTINGS)))
    with pytest.raises(CheckpointError, match=r"tensor_names.*not JSON"):
        open_quantized(Checkpoint.open(save(tmp_path / "bad", tensors, SETTINGS, tensor_names="[")))


def test_integers_beyond_their_bits_are_refused(tmp_path: Path) -> None:
    tensors = {"a._weight_qdata": torch.full((4, 32), 9, dtype=torch.int8), "a._weight_scale": torch.ones(4, 1)}
    data = {"block_size": [1, 32], "target_dtype": {"_type": "torch.dtype", "_data": "int4"}, "activation_quantization": None}
    described = {"_type": "IntxUnpackedToInt8Tensor", "_data": data, "_tensor_data_names": ["qdata", "scale"]}
    metadata = {"tensor_names": '["a.weight"]', "a.weight": json.dumps(described)}
    store = open_quantized(Checkpoint.open(save(tmp_path, tensors, SETTINGS, **metadata)))
    with pytest.raises(CheckpointError, match=r"a._weight_qdata has integers outside \[-8, 7\]"):
        store.read("a.weight")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_what_transformers_saves_in_several_files(name: str, tmp_path: Path) -> None:
    transformers, torchao = pytest.importorskip("transformers"), pytest.importorskip("torchao.quantization")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=96, **sizes))
    model.save_pretrained(tmp_path / "floats")
    settings = transformers.TorchAoConfig(CONFIGS[name][0](torchao))
    quantized = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "floats", quantization_config=settings, dtype=torch.float32)
    quantized.save_pretrained(tmp_path / "integers", max_shard_size="100KB")
    assert len(list((tmp_path / "integers").glob("*.safetensors"))) > 1
    with open_quantized(Checkpoint.open(tmp_path / "integers")) as store:
        assert isinstance(store, IntegerStore)
        state = quantized.state_dict()
        assert store.tensors.keys() == state.keys()
        for key, value in state.items():
            assert torch.equal(store.read(key), value.dequantize() if type(value) is not torch.Tensor else value)
        assert sum(store.stored_integers(key) is not None for key in state) == 14
