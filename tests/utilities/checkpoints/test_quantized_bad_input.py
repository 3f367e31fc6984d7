"""What is wrong with a quantized checkpoint is said once, with the file, the tensor or key, and the way out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flatlm.errors import CheckpointError, ConfigError
from flatlm.utilities.checkpoints.directory import Checkpoint
from flatlm.utilities.checkpoints.quantized import IntegerStore, open_quantized
from tests.quantized_checkpoints import (
    awq,
    awq_config,
    compressed_config,
    gptq,
    gptq_config,
    int_quantized,
    pack_quantized,
    random_linear,
    save,
)

LINEAR = random_linear(40, 96, group_size=32)
GPTQ, AWQ, PACKED, INTS = gptq(LINEAR), awq(LINEAR), pack_quantized(LINEAR), int_quantized(LINEAR)
INT_CONFIG = compressed_config("naive-quantized")
Tensors = dict[str, torch.Tensor]


def in_group(**changes: Any) -> dict[str, Any]:
    settings = compressed_config("pack-quantized")
    settings["config_groups"]["group_0"] |= changes
    return settings


def without(tensors: Tensors, name: str) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if key != name}


BAD_TENSORS: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "no_scales": (without(GPTQ, "scales"), gptq_config(), "tensor a.scales is missing.*a.weight needs.*download"),
    "no_zeros": (without(GPTQ, "qzeros"), gptq_config(), "tensor a.qzeros is missing"),
    "no_order": (without(GPTQ, "g_idx"), gptq_config(desc_act=True), "tensor a.g_idx is missing"),
    "short_zeros": (GPTQ | {"qzeros": GPTQ["qzeros"][:2]}, gptq_config(), r"a.qzeros has shape \[2, 5\].*needs \[3, 5\].*config.json"),
    "other_group": (GPTQ, gptq_config(group_size=48), r"a.scales has shape \[3, 40\].*needs \[2, 40\]"),
    "other_bits": (GPTQ, gptq_config(bits=8), r"a.scales has shape \[3, 40\].*needs \[2, 40\]"),
    "no_matrix": (GPTQ | {"qweight": GPTQ["qweight"][0]}, gptq_config(), r"a.qweight has shape \[40\].*a matrix"),
    "float_words": (GPTQ | {"qweight": GPTQ["qweight"].float()}, gptq_config(), "a.qweight is float32.*needs int32"),
    "integer_scales": (GPTQ | {"scales": GPTQ["scales"].int()}, gptq_config(), "a.scales is int32.*needs a float type"),
    "twice": (GPTQ | {"weight": LINEAR.values}, gptq_config(), "both the tensor a.weight and a.qweight"),
    "awq_no_scales": (without(AWQ, "scales"), awq_config(), "tensor a.scales is missing"),
    "awq_zeros": (AWQ | {"qzeros": AWQ["qzeros"][:, :4]}, awq_config(), r"a.qzeros has shape \[3, 4\].*needs \[3, 5\]"),
    "packed_no_scale": (without(PACKED, "weight_scale"), compressed_config("pack-quantized"), "a.weight_scale is missing"),
    "packed_no_shape": (without(PACKED, "weight_shape"), compressed_config("pack-quantized"), "a.weight_shape is missing"),
    "packed_shape": (
        PACKED | {"weight_shape": torch.tensor([40, 128])},
        compressed_config("pack-quantized"),
        r"a.weight_packed has shape \[40, 12\].*needs \[40, 16\]",
    ),
    "packed_no_zero": (PACKED, compressed_config("pack-quantized", symmetric=False), "a.weight_zero_point is missing"),
    "group_not_dividing": (PACKED, compressed_config("pack-quantized", group_size=36), "96 columns, not a multiple of the group_size 36"),
    "int_no_scale": (without(INTS, "weight_scale"), INT_CONFIG, "a.weight_scale is missing"),
    "int_scale": (INTS | {"weight_scale": torch.ones(40, 2)}, INT_CONFIG, r"a.weight_scale has shape \[40, 2\].*needs \[40, 3\]"),
}
BAD_SETTINGS: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "method": (GPTQ, {"quant_method": "bitsandbytes"}, 'quant_method = "bitsandbytes" is not supported; supported are awq, compressed'),
    "no_method": (GPTQ, {"bits": 4}, "has no quant_method"),
    "bits": (GPTQ, gptq_config(bits=3), "bits = 3 is not supported; supported are 2, 4, 8"),
    "bits_text": (GPTQ, gptq_config(bits="4"), 'bits = "4" must be'),
    "group": (GPTQ, gptq_config(group_size=0), "group_size = 0 must be"),
    "format": (GPTQ, gptq_config(checkpoint_format="marlin"), 'checkpoint_format = "marlin" is not supported; supported are gptq'),
    "overrides": (GPTQ, gptq_config(dynamic={"+:.*down.*": {"bits": 8}}), r"dynamic: '\+:.*changes the settings"),
    "unknown": (GPTQ, gptq_config(rotation="hadamard"), 'rotation = "hadamard"; take a checkpoint'),
    "awq_bits": (AWQ, awq_config(bits=8), "bits = 8 is not supported; supported are 4"),
    "awq_layout": (AWQ, awq_config(version="gemv"), 'version = "gemv" is not supported; supported are gemm'),
    "awq_unknown": (AWQ, awq_config(scale_dtype="e4m3"), "scale_dtype"),
    "packing": (PACKED, compressed_config("marlin-24"), 'format = "marlin-24" is not supported; supported are int-quantized'),
    "other_packing": (PACKED, INT_CONFIG, "format does not agree with .*a.weight_packed is pack-quantized"),
    "floats": (PACKED, compressed_config("pack-quantized", type="float"), 'weights: type = "float" is not supported'),
    "five_bits": (PACKED, compressed_config("pack-quantized", num_bits=5), "num_bits = 5 is not supported; supported are 2, 4, 8"),
    "strategy": (PACKED, compressed_config("pack-quantized", strategy="block"), 'strategy = "block" is not supported'),
    "strategy_group": (PACKED, compressed_config("pack-quantized", strategy="channel"), "group_size = 32 does not go with strategy"),
    "weights_key": (PACKED, compressed_config("pack-quantized", twist=2), "weights: has keys.*twist = 2"),
    "cache": (PACKED, compressed_config("pack-quantized") | {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme.*not supported"),
    "transform": (PACKED, compressed_config("pack-quantized") | {"transform_config": {"R1": {}}}, "transform_config.*not supported"),
    "static": (
        PACKED,
        in_group(input_activations={"num_bits": 8, "dynamic": False}),
        "input_activations: dynamic = false is not supported",
    ),
    "outputs": (PACKED, in_group(output_activations={"num_bits": 8}), "output_activations.*not supported"),
    "targets": (PACKED, in_group(targets=["re:b.*"]), "no target that fits the quantized module a of"),
    "pattern": (PACKED, in_group(targets=["re:("]), "has a pattern that is none"),
    "no_targets": (PACKED, in_group(targets=None), "targets = null must be a list"),
    "no_weights": (PACKED, in_group(weights=None), "weights = null must say"),
}


def opened(directory: Path, tensors: Tensors, settings: dict[str, Any]) -> Callable[[], object]:
    save(directory, {f"a.{name}": tensor for name, tensor in tensors.items()}, settings)
    return lambda: open_quantized(Checkpoint.open(directory))


@pytest.mark.parametrize("what", BAD_TENSORS)
def test_tensors_that_do_not_fit(what: str, tmp_path: Path) -> None:
    tensors, settings, message = BAD_TENSORS[what]
    with pytest.raises(CheckpointError, match=message) as caught:
        opened(tmp_path, tensors, settings)()
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("what", BAD_SETTINGS)
def test_settings_that_are_not_supported(what: str, tmp_path: Path) -> None:
    tensors, settings, message = BAD_SETTINGS[what]
    with pytest.raises(ConfigError, match=message) as caught:
        opened(tmp_path, tensors, settings)()
    assert f"{tmp_path / 'config.json'}: quantization_config" in str(caught.value)


def test_settings_that_do_not_change_numbers_are_welcome(tmp_path: Path) -> None:
    inert = gptq_config(true_sequential=True, model_name_or_path=None, meta={"quantizer": ["x:1"]}, static_groups=False, lm_head=False)
    assert opened(tmp_path, GPTQ, inert | {"dynamic": {"-:lm_head": {}}})()


@pytest.mark.parametrize("group", [-1, 3])
def test_an_order_that_names_no_group(group: int, tmp_path: Path) -> None:
    order = GPTQ["g_idx"].clone()
    order[7] = group
    store = opened(tmp_path, GPTQ | {"g_idx": order}, gptq_config(desc_act=True))()
    assert isinstance(store, IntegerStore)
    with pytest.raises(CheckpointError, match=f"{tmp_path}.*a.g_idx names groups.*{group}.*there are 3"):
        store.rows("a.weight", 0, 1)


def test_scales_that_are_not_finite(tmp_path: Path) -> None:
    scales = GPTQ["scales"].clone()
    scales[1, 1] = float("nan")
    store = opened(tmp_path, GPTQ | {"scales": scales}, gptq_config())()
    assert isinstance(store, IntegerStore)
    with pytest.raises(CheckpointError, match=f"{tmp_path}.*a.qweight has scales or zeros that are not finite"):
        store.stored_integers("a.weight")


def test_packed_tensors_without_settings(tmp_path: Path) -> None:
    save(tmp_path, {f"a.{name}": tensor for name, tensor in GPTQ.items()}, None)
    with pytest.raises(ConfigError, match=r"config\.json: has no quantization_config, though tensor a\.qweight.*quantize_config\.json"):
        open_quantized(Checkpoint.open(tmp_path))


def test_a_truncated_file_is_the_file_readers_affair(tmp_path: Path) -> None:
    save(tmp_path, {f"a.{name}": tensor for name, tensor in GPTQ.items()}, gptq_config())
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_quantized(Checkpoint.open(tmp_path))
