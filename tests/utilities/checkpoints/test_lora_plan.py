"""Where an adapter's tensors belong; what does not fit is one error that names the file and the tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.examples.references import Case, make_llama
from tests.utilities.checkpoints.adapters import PREFIX, WEIGHTS, copied, edit, make_gpt2, opened, refusal, require_equal, rewrite, train


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("targets", [["c_attn", "c_proj", "c_fc"], ["attn.c_proj"], ["wte", "c_attn"]], ids=str)
@pytest.mark.parametrize("flag", [True, False])
def test_weights_stored_the_other_way_round(tmp_path: Path, targets: list[str], dora: bool, flag: bool) -> None:
    model = make_gpt2(tmp_path / "base")
    merged = train(model, tmp_path / "adapter", target_modules=targets, use_dora=dora, fan_in_fan_out=True)
    edit(tmp_path / "adapter", fan_in_fan_out=flag)  # peft does not heed it either: the kind of module decides
    with opened(tmp_path / "base", tmp_path / "adapter") as store:
        require_equal(store, merged)


@pytest.mark.parametrize("flag", [True, False])
def test_fan_in_fan_out_decides_where_nothing_else_does(tmp_path: Path, flag: bool) -> None:
    """One square weight with a bias, and no other beside it."""
    generator = torch.Generator().manual_seed(1)
    weight, a, b = (torch.randn(shape, generator=generator) for shape in ((8, 8), (2, 8), (8, 2)))
    (tmp_path / "base").mkdir(), (tmp_path / "adapter").mkdir()
    save_file({"h.0.f.weight": weight, "h.0.f.bias": torch.zeros(8)}, tmp_path / "base" / "model.safetensors")
    save_file({"base_model.model.h.0.f.lora_A.weight": a, "base_model.model.h.0.f.lora_B.weight": b}, tmp_path / "adapter" / WEIGHTS)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "fan_in_fan_out": flag, "target_modules": ["f"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with opened(tmp_path / "base", tmp_path / "adapter") as store:
        delta = 2.0 * b @ a
        assert torch.allclose(store.read("h.0.f.weight"), weight + (delta.T if flag else delta), atol=1e-6)


def test_names_that_begin_otherwise(tmp_path: Path) -> None:
    """A base saved without its head's prefix, or within another model; an adapter with names of older versions of peft."""
    merged = train(make_llama(Case("base"), tmp_path / "base"), tmp_path / "adapter", modules_to_save=["lm_head"])
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    for prefix in ("", "language_model.model."):
        renamed = {prefix + name.removeprefix("model."): value for name, value in tensors.items()}
        save_file(renamed, tmp_path / "base" / "model.safetensors")
        with opened(tmp_path / "base", tmp_path / "adapter") as store:
            assert len(store.changed) == 13
            found = {name.removeprefix(prefix): name.removeprefix(prefix) for name in renamed}
            require_equal(store, merged, lambda name, p=prefix: "lm_head.weight" if "lm_head" in name else f"model.{name.removeprefix(p)}")
            assert found
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    older = {
        name.replace("lora_A", "lora_A.default").replace("lm_head", "lm_head.modules_to_save"): value
        for name, value in load_file(tmp_path / "adapter" / WEIGHTS).items()
    }
    save_file(older, tmp_path / "adapter" / WEIGHTS)
    with opened(tmp_path / "base", tmp_path / "adapter") as store:
        require_equal(store, merged)


def rename(old: str, new: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def put(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop(f"{PREFIX}.lora_B.weight"), f"tensor '{PREFIX}.lora_A.weight' has no lora_B beside it; the file is incomplete"),
        (lambda t: t.pop(f"{PREFIX}.lora_A.weight"), f"tensor '{PREFIX}.lora_B.weight' has no lora_A beside it"),
        (
            lambda t: (t.pop(f"{PREFIX}.lora_A.weight"), t.pop(f"{PREFIX}.lora_B.weight")),
            "has no tensors for model.layers.0.self_attn.q_proj, though adapter_config.json names q_proj in target_modules",
        ),
        (rename(f"{PREFIX}.lora_A.weight", f"{PREFIX}s.lora_A.weight"), "has no lora_A beside it"),
        (put("base_model.model.model.layers.7.mlp.up_proj.lora_A.weight", torch.ones(4, 64)), "matches no tensor of"),
        (put("base_model.model.model.norm2.weight", torch.ones(64)), "matches no tensor of"),
        (put("base_model.model.model.norm.bias", torch.ones(64)), "is a bias, which"),
        (put(f"{PREFIX}.lora_A.weight", torch.ones(4, 65)), "has shape [4, 65], but the base asks for [4, 64]; give the base that"),
        (put(f"{PREFIX}.lora_B.weight", torch.ones(65, 4)), "has shape [65, 4], but the base asks for [64, 4]"),
        (put(f"{PREFIX}.lora_B.weight", torch.ones(64, 5)), "has shape [64, 5], but adapter_config.json gives"),
        (put(f"{PREFIX}.lora_B.weight", torch.ones(64)), "has shape [64]; FlatLM merges matrices, two-dimensional ones only"),
        (put(f"{PREFIX}.lora_A.weight", torch.ones(4, 64, 1, 1)), "two-dimensional ones only"),
        (put(f"{PREFIX}.lora_A.weight", torch.full((4, 64), torch.nan)), f"tensor '{PREFIX}.lora_A.weight' has values that are not finite"),
        (put(f"{PREFIX}.lora_B.weight", torch.full((64, 4), torch.inf)), f"tensor '{PREFIX}.lora_B.weight' has values that are not finite"),
        (put(f"{PREFIX}.lora_A.weight", torch.ones(4, 64, dtype=torch.int32)), "is torch.int32, not a floating-point type"),
        (put(f"{PREFIX}.lora_magnitude_vector", torch.ones(64)), "does not go with adapter_config.json, where use_dora is off"),
        (put(f"{PREFIX}.lora_B.bias", torch.ones(64)), "does not go with adapter_config.json, where lora_bias is off"),
        (put(f"{PREFIX}.lora_A.bias", torch.ones(4)), "is of a kind that FlatLM does not merge"),
        (put(f"{PREFIX}.lora_diag", torch.ones(4)), "is of a kind that FlatLM does not merge"),
        (put("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", torch.ones(2, 64)), "is of a kind that"),
        (put(f"{PREFIX}.weight", torch.ones(64, 63)), "has shape [64, 63], but the base asks for [64, 64]"),
        (put("base_model.model.lm_head.weight", torch.ones(128, 63)), "has shape [128, 63], but the base asks for [128, 64]"),
        (put("base_model.model.model.norm.lora_A.weight", torch.ones(4, 64)), "has no lora_B beside it"),
        (
            lambda t: t.update({f"base_model.model.model.norm.lora_{p}.weight": torch.ones(4, 4) for p in "AB"}),
            "belongs to model.norm.weight of shape [64]",
        ),
        (put(f"{PREFIX}.lora_A.default.weight", torch.ones(4, 64)), "are the same one"),
        (
            lambda t: t.update({f"layers.0.self_attn.q_proj.lora_{p}.weight": t[f"{PREFIX}.lora_{p}.weight"].clone() for p in "AB"}),
            "is meant for model.layers.0.self_attn.q_proj.weight, as",
        ),
        (lambda t: t.clear(), "no tensors in it"),
    ],
)
def test_tensors_that_do_not_fit(original: Path, adapter: Path, change: Callable[[dict[str, Tensor]], Any], complaint: str) -> None:
    rewrite(adapter, change)
    assert complaint in refusal(original / "base", adapter)


def test_dora_without_a_magnitude_or_with_one_of_another_shape(original: Path, tmp_path: Path) -> None:
    adapter = copied(original / "dora", tmp_path / "adapter")
    rewrite(adapter, put(f"{PREFIX}.lora_magnitude_vector", torch.ones(63)))
    assert "has shape [63], but the base asks for [64]" in refusal(original / "base", adapter)
    rewrite(adapter, put(f"{PREFIX}.lora_magnitude_vector", torch.full((64,), torch.nan)))
    assert "lora_magnitude_vector' has values that are not finite" in refusal(original / "base", adapter)
    rewrite(adapter, lambda tensors: tensors.pop(f"{PREFIX}.lora_magnitude_vector"))
    assert "has no lora_magnitude_vector beside it" in refusal(original / "base", adapter)


def test_a_base_whose_names_could_be_meant_twice(original: Path, adapter: Path, tmp_path: Path) -> None:
    tensors = load_file(original / "base" / "model.safetensors")
    (tmp_path / "base").mkdir()
    save_file(
        {f"{prefix}.{name}": value.clone() for name, value in tensors.items() for prefix in ("transformer", "language_model")},
        tmp_path / "base" / "model.safetensors",
    )
    assert "could be meant for language_model.model.layers.0.self_attn.k_proj.weight or transformer.model" in refusal(
        tmp_path / "base", adapter
    )


def test_a_tied_head_without_its_own_weights(tmp_path: Path) -> None:
    train(make_llama(Case("tied", {"tie_word_embeddings": True}), tmp_path / "base"), tmp_path / "adapter", target_modules=["lm_head"])
    rewrite(tmp_path / "adapter", lambda tensors: tensors.pop("base_model.model.lm_head.base_layer.weight"))
    assert "is for the head, whose own weights are neither in the adapter" in refusal(tmp_path / "base", tmp_path / "adapter")
