"""Quantized checkpoints give the values that their integers, zeros and scales say, exactly, whichever rows are asked for."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from flatlm.utilities.checkpoints.directory import Checkpoint
from flatlm.utilities.checkpoints.packed import WholeTensors
from flatlm.utilities.checkpoints.quantized import IntegerStore, is_quantized, open_quantized
from tests.quantized_checkpoints import (
    Linear,
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

DYNAMIC = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True, "observer": "minmax"}
Packer = Callable[[Linear], dict[str, torch.Tensor]]
FORMS: dict[str, tuple[Packer, dict[str, Any], Linear]] = {
    "gptq": (gptq, gptq_config(), random_linear(40, 96, group_size=32)),
    "gptq_8_bits": (gptq, gptq_config(bits=8), random_linear(40, 96, bits=8, group_size=32)),
    "gptq_2_bits": (gptq, gptq_config(bits=2), random_linear(48, 96, bits=2, group_size=32)),
    "gptq_channel": (gptq, gptq_config(group_size=-1), random_linear(40, 96)),
    "gptq_asymmetric": (gptq, gptq_config(sym=False), random_linear(40, 96, group_size=32, symmetric=False)),
    "gptq_8_bits_asymmetric": (gptq, gptq_config(bits=8, sym=False), random_linear(40, 96, bits=8, group_size=32, symmetric=False)),
    "gptq_act_order": (gptq, gptq_config(desc_act=True), random_linear(40, 96, group_size=32, act_order=True)),
    "gptq_v2": (
        lambda linear: gptq(linear, less_one=False),
        gptq_config(checkpoint_format="gptq_v2", sym=False),
        random_linear(40, 96, group_size=32, symmetric=False),
    ),
    "awq": (awq, awq_config(), random_linear(40, 96, group_size=32, symmetric=False)),
    "awq_symmetric": (awq, awq_config(), random_linear(40, 96, group_size=32)),
    "pack_quantized": (pack_quantized, compressed_config("pack-quantized"), random_linear(40, 96, group_size=32, dtype=torch.bfloat16)),
    "pack_quantized_padded": (
        pack_quantized,
        compressed_config("pack-quantized", strategy="channel", group_size=None),
        random_linear(37, 90),
    ),
    "pack_quantized_8_bits": (
        pack_quantized,
        compressed_config("pack-quantized", num_bits=8, strategy="channel", group_size=None),
        random_linear(40, 96, bits=8),
    ),
    "pack_quantized_asymmetric": (
        pack_quantized,
        compressed_config("pack-quantized", symmetric=False),
        random_linear(37, 96, group_size=32, symmetric=False),
    ),
    "int_quantized": (
        int_quantized,
        compressed_config("int-quantized", activations=DYNAMIC, num_bits=8, strategy="channel", group_size=None),
        random_linear(40, 96, bits=8, dtype=torch.bfloat16),
    ),
    "int_quantized_asymmetric": (
        int_quantized,
        compressed_config("int-quantized", num_bits=8, strategy="channel", group_size=None, symmetric=False),
        random_linear(40, 96, bits=8, symmetric=False),
    ),
    "naive_quantized": (
        int_quantized,
        compressed_config("naive-quantized", num_bits=4, group_size=32),
        random_linear(40, 96, group_size=32),
    ),
}


def open_form(directory: Path, form: str) -> tuple[IntegerStore, Linear]:
    packer, settings, linear = FORMS[form]
    tensors = {f"model.layers.0.proj.{part}": tensor for part, tensor in packer(linear).items()}
    plain = {"model.norm.weight": torch.randn(96), "lm_head.weight": torch.randn(7, 96).to(torch.bfloat16)}
    store = open_quantized(Checkpoint.open(save(directory, tensors | plain, settings)))
    assert isinstance(store, IntegerStore)
    return store, linear


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_exact_values_of_any_rows(form: str, tmp_path: Path) -> None:
    store, linear = open_form(tmp_path, form)
    name, rows = "model.layers.0.proj.weight", linear.integers.shape[0]
    with store:
        assert store.tensors.keys() == {name, "model.norm.weight", "lm_head.weight"}
        record = store.tensors[name]
        assert (record.shape, record.dtype, record.file) == (linear.integers.shape, torch.float32, tmp_path / "model.safetensors")
        assert torch.equal(store.read(name), linear.values)
        for start, stop in [(0, rows), (3, 20), (8, 16), (rows - 1, rows), (5, 5)]:
            assert torch.equal(store.rows(name, start, stop), linear.values[start:stop])
        assert store.rows("lm_head.weight", 1, 3).dtype == torch.bfloat16
        assert store.stored_integers("lm_head.weight") is None
        with pytest.raises(ValueError, match="rows"):
            store.rows(name, 0, rows + 1)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_what_is_stored_and_gives_it(form: str, tmp_path: Path) -> None:
    store, linear = open_form(tmp_path, form)
    stored = store.stored_integers("model.layers.0.proj.weight")
    assert stored is not None
    groups = linear.scales.shape[1]
    assert (stored.bits, stored.block_size) == (linear.bits, None if groups == 1 else linear.group_size)
    kind = "asymmetric" if linear.zeros.any() else "act-order" if "act_order" in form else None
    assert stored.obstacle is None if kind is None else kind in (stored.obstacle or "")
    if kind is None:
        rows = store.integer_rows("model.layers.0.proj.weight", 5, 21)
        assert rows.integers.dtype == torch.int8
        assert torch.equal(rows.integers, linear.integers[5:21].to(torch.int8))
        assert torch.equal(rows.scales, linear.scales[5:21].float())
        assert stored.smallest_scale == float(linear.scales.min())


def test_several_threads_read_at_once(tmp_path: Path) -> None:
    store, linear = open_form(tmp_path, "gptq_act_order")
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda start: store.rows("model.layers.0.proj.weight", start, start + 5), [*range(0, 40, 5)] * 8))
    assert torch.equal(torch.cat(parts), linear.values.repeat(8, 1))


def test_what_is_kept_stays_below_twice_the_largest_tensor(tmp_path: Path) -> None:
    tensors = {f"{i}.qweight": torch.full((16, 100), i, dtype=torch.int32) for i in range(5)}
    whole = WholeTensors(Checkpoint.open(save(tmp_path, tensors, None)))
    for i in (0, 1, 2, 0, 3, 4):
        assert torch.equal(whole.get(f"{i}.qweight"), tensors[f"{i}.qweight"])
        assert sum(tensor.nbytes for tensor in whole._kept.values()) <= 2 * 6400
    assert list(whole._kept) == ["3.qweight", "4.qweight"]


def test_middle_zero_points_that_are_said_to_be_symmetric_are_not_less_one(tmp_path: Path) -> None:
    """As some quantizers store them under the name of the older format."""
    linear = random_linear(40, 96, group_size=32)
    tensors = {f"proj.{part}": tensor for part, tensor in gptq(linear, less_one=False).items()}
    store = open_quantized(Checkpoint.open(save(tmp_path / "sym", tensors, gptq_config(checkpoint_format="gptq"))))
    assert torch.equal(store.read("proj.weight"), linear.values)
    store = open_quantized(Checkpoint.open(save(tmp_path / "asym", tensors, gptq_config(checkpoint_format="gptq", sym=False))))
    assert torch.equal(store.read("proj.weight"), linear.values - linear.scales[:, linear.group_of].float())


def test_a_last_group_may_be_shorter(tmp_path: Path) -> None:
    linear = random_linear(40, 96, group_size=32)
    shorter = Linear(linear.integers[:, :80], linear.zeros, linear.scales, linear.group_of[:80], 4)
    tensors = {f"proj.{part}": tensor for part, tensor in gptq(shorter).items()}
    store = open_quantized(Checkpoint.open(save(tmp_path, tensors, gptq_config())))
    assert torch.equal(store.read("proj.weight"), shorter.values)
    assert isinstance(store, IntegerStore)
    assert store.stored_integers("proj.weight").obstacle is not None


def test_groups_of_a_patterned_configuration_go_to_the_closest_target(tmp_path: Path) -> None:
    four, eight, named = random_linear(16, 64, group_size=32), random_linear(16, 64, bits=8, group_size=64), random_linear(16, 64, bits=8)
    parts = {"model.a": four, "model.b.down": eight, "model.c.down": named}
    tensors = {f"{name}.{part}": tensor for name, linear in parts.items() for part, tensor in pack_quantized(linear).items()}
    settings = compressed_config("pack-quantized")
    pattern = compressed_config("pack-quantized", num_bits=8, group_size=64)["config_groups"]["group_0"] | {"targets": ["re:.*down$"]}
    name = compressed_config("pack-quantized", num_bits=8, strategy="channel", group_size=None)["config_groups"]["group_0"]
    settings["config_groups"] |= {"group_1": pattern, "group_2": name | {"targets": ["model.c.down"]}}
    store = open_quantized(Checkpoint.open(save(tmp_path, tensors, settings)))
    for name, linear in parts.items():
        assert torch.equal(store.read(f"{name}.weight"), linear.values)


def test_reordered_columns_of_compressed_tensors(tmp_path: Path) -> None:
    linear = random_linear(16, 64, group_size=32, act_order=True)
    tensors = {f"a.{part}": tensor for part, tensor in pack_quantized(linear).items()} | {"a.weight_g_idx": linear.group_of.int()}
    store = open_quantized(Checkpoint.open(save(tmp_path / "group", tensors, compressed_config("pack-quantized", actorder="group"))))
    assert torch.equal(store.read("a.weight"), linear.values)
    plain = random_linear(16, 64, group_size=32)
    tensors = {f"a.{part}": tensor for part, tensor in pack_quantized(plain).items()} | {"a.weight_g_idx": -torch.ones(64).int()}
    store = open_quantized(Checkpoint.open(save(tmp_path / "none", tensors, compressed_config("pack-quantized", actorder="weight"))))
    assert torch.equal(store.read("a.weight"), plain.values)


def test_one_scale_for_a_whole_tensor(tmp_path: Path) -> None:
    linear = random_linear(16, 64, bits=8)
    tensors = {"a.weight": linear.integers.to(torch.int8), "a.weight_scale": torch.tensor([0.25])}
    settings = compressed_config("int-quantized", num_bits=8, strategy="tensor", group_size=None)
    store = open_quantized(Checkpoint.open(save(tmp_path, tensors, settings)))
    assert torch.equal(store.rows("a.weight", 3, 9), linear.integers[3:9].float() * 0.25)
    assert isinstance(store, IntegerStore)
    assert store.stored_integers("a.weight").block_size is None
    assert store.integer_rows("a.weight", 3, 9).scales.shape == (6, 1)


def test_the_fingerprint_knows_the_settings(tmp_path: Path) -> None:
    prints = []
    for settings in (gptq_config(), gptq_config(checkpoint_format="gptq_v2"), gptq_config(sym=False)):
        tensors = {f"a.{part}": tensor for part, tensor in gptq(FORMS["gptq"][2]).items()}
        prints.append(open_quantized(Checkpoint.open(save(tmp_path, tensors, settings))).fingerprint())
    assert len(set(prints)) == 3


def test_a_checkpoint_of_floats_is_left_alone(tmp_path: Path) -> None:
    store = Checkpoint.open(save(tmp_path, {"a.weight": torch.randn(2, 3)}, None))
    assert open_quantized(store) is store
    assert not is_quantized(tmp_path)


def test_biases_of_zeros_are_known(tmp_path: Path) -> None:
    packed = gptq(FORMS["gptq"][2])
    tensors = {f"{name}.{part}": tensor for name in "ab" for part, tensor in packed.items()}
    tensors |= {"a.bias": torch.zeros(40), "b.bias": torch.ones(40), "c.bias": torch.zeros(40)}
    store = open_quantized(Checkpoint.open(save(tmp_path, tensors, gptq_config())))
    assert isinstance(store, IntegerStore)
    assert store.zero_biases() == {"a.bias"}
