"""Adapters made by peft itself: the weights that FlatLM reads are those that peft merges."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from flatlm.utilities.checkpoints.directory import Checkpoint
from flatlm.utilities.checkpoints.lora import LoraStore
from flatlm.utilities.checkpoints.open import open_checkpoint
from tests.examples.references import Case, make_llama

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
BIASES = {"attention_bias": True, "mlp_bias": True}
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


def make_gpt2(directory: Path) -> transformers.GPT2LMHeadModel:
    """Weights stored [in, out], one of them square."""
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0)
    generator = torch.Generator().manual_seed(5)
    model = transformers.GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(directory)
    return model


def train(model: Any, directory: Path, *, resize: int | None = None, safe: bool = True, **options: Any) -> dict[str, Tensor]:
    """Save an adapter with every tensor of it random; returns what peft makes of base and adapter."""
    if resize is not None:
        model.resize_token_embeddings(resize, mean_resizing=False)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "target_modules": ATTENTION, **options}))
    generator = torch.Generator().manual_seed(7)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(0.5 + noise.abs() if "magnitude" in name else 0.2 * noise)  # in place: some are tied
    adapted.save_pretrained(directory, safe_serialization=safe)
    if not safe and not (directory / "adapter_model.bin").exists():  # what older versions of peft wrote
        torch.save(load_file(directory / "adapter_model.safetensors"), directory / "adapter_model.bin")
        (directory / "adapter_model.safetensors").unlink()
    return dict(adapted.merge_and_unload().state_dict())


def edit(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def require_equal(store: LoraStore, merged: Mapping[str, Tensor], names: Callable[[str], str] = str) -> None:
    """Every tensor of the store, whole and in pieces."""
    assert store.changed
    for name, record in store.tensors.items():
        values, expected = store.read(name), merged[names(name)].float()
        assert (tuple(values.shape), values.dtype) == (record.shape, record.dtype), name
        assert torch.allclose(values.float(), expected, rtol=1e-6, atol=1e-6), name
        cuts = [0, *range(1, record.shape[0], 13), record.shape[0]]
        pieces = [store.rows(name, low, high) for low, high in itertools.pairwise(cuts)]
        assert torch.allclose(torch.cat(pieces), values, rtol=1e-6, atol=1e-6), name


def opened(base: Path, adapter: Path) -> LoraStore:
    store = open_checkpoint(base, lora=adapter)
    assert isinstance(store, LoraStore)
    return store


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "attention": ({}, {}),
    "every linear": ({}, {"target_modules": "all-linear", "lora_alpha": 3}),
    "embedding and head": ({}, {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "rslora": ({}, {"use_rslora": True, "lora_alpha": 16}),
    "patterns": (
        {},
        {
            "target_modules": LINEAR,
            "rank_pattern": {r"layers\.[01]\.mlp\.up_proj": 2, "model.layers.0.self_attn.q_proj": 3, "q_proj": 6},
            "alpha_pattern": {"o_proj": 32, "^model.layers.2.mlp.down_proj": 1},
        },
    ),
    "patterns with rslora": ({}, {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 5}, "use_rslora": True}),
    "some layers": ({}, {"layers_to_transform": [0, 2], "layers_pattern": "layers"}),
    "excluded": ({}, {"exclude_modules": ["k_proj"]}),
    "dora": ({}, {"target_modules": LINEAR, "use_dora": True}),
    "dora of the embedding": ({}, {"target_modules": ["embed_tokens", "lm_head", "v_proj"], "use_dora": True, "use_rslora": True}),
    "all biases": (BIASES, {"bias": "all"}),
    "biases of what is adapted": (BIASES, {"bias": "lora_only"}),
    "bias none": (BIASES, {"bias": "none"}),
    "biases of B": (BIASES, {"lora_bias": True, "target_modules": LINEAR, "lora_alpha": 5}),
    "biases of B and all": (BIASES, {"lora_bias": True, "bias": "all"}),
    "modules to save": ({}, {"modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
    "gaussian start": ({}, {"init_lora_weights": "gaussian"}),
    "tied head": ({"tie_word_embeddings": True}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_weights_that_peft_merges(tmp_path: Path, name: str) -> None:
    base, options = CASES[name]
    model = make_llama(Case(name, base), tmp_path / "base")
    merged = train(model, tmp_path / "adapter", **options)
    with opened(tmp_path / "base", tmp_path / "adapter") as store:
        require_equal(store, merged)
        with Checkpoint.open(tmp_path / "base") as plain:
            different = {n for n in plain.tensors if not torch.equal(plain.read(n), store.read(n).to(plain.tensors[n].dtype))}
            assert different == set(store.changed)


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


@pytest.mark.parametrize("size", [130, 100])
def test_a_resized_vocabulary(tmp_path: Path, size: int) -> None:
    model = make_llama(Case("base"), tmp_path / "base")
    merged = train(model, tmp_path / "adapter", resize=size, modules_to_save=["lm_head", "embed_tokens"])
    with opened(tmp_path / "base", tmp_path / "adapter") as store:
        require_equal(store, merged)
        assert store.tensors["lm_head.weight"].shape == (size, 64)
        assert store.vocabulary("model.embed_tokens.weight") == size
        assert store.vocabulary("model.layers.0.self_attn.q_proj.weight") is None
        assert store.tensors["lm_head.weight"].file == tmp_path / "adapter" / WEIGHTS


def test_a_resized_vocabulary_with_adapted_embeddings(tmp_path: Path) -> None:
    model = make_llama(Case("base"), tmp_path / "base")
    merged = train(model, tmp_path / "adapter", resize=131, target_modules=["lm_head", "embed_tokens"], use_dora=True)
    with opened(tmp_path / "base", tmp_path / "adapter") as store:
        require_equal(store, merged)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_added_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model = make_llama(Case("base"), tmp_path / "whole").to(dtype)
    model.save_pretrained(tmp_path / "base")
    merged = train(model.float(), tmp_path / "adapter")
    tensors = {name: value.to(dtype) for name, value in load_file(tmp_path / "adapter" / WEIGHTS).items()}
    with opened(tmp_path / "base", tmp_path / "adapter") as store:
        require_equal(store, merged)
        assert store.tensors["model.norm.weight"].dtype == dtype
    save_file(tensors, tmp_path / "adapter" / WEIGHTS)
    with opened(tmp_path / "base", tmp_path / "adapter") as store:
        name = "model.layers.1.self_attn.k_proj"
        a, b = (tensors[f"base_model.model.{name}.lora_{part}.weight"].float() for part in "AB")
        with Checkpoint.open(tmp_path / "base") as plain:
            assert torch.allclose(store.read(f"{name}.weight"), plain.read(f"{name}.weight").float() + 2 * b @ a, atol=1e-6)


def test_files_of_torch(tmp_path: Path) -> None:
    merged = train(make_llama(Case("base"), tmp_path / "base"), tmp_path / "adapter", safe=False)
    assert (tmp_path / "adapter" / "adapter_model.bin").exists()
    with opened(tmp_path / "base", tmp_path / "adapter") as store:
        require_equal(store, merged)


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


def test_fingerprints_cover_both(tmp_path: Path) -> None:
    train(make_llama(Case("base"), tmp_path / "base"), tmp_path / "one")
    train(make_llama(Case("base"), tmp_path / "other", seed=1), tmp_path / "two", lora_alpha=9)
    prints = set()
    for base in ("base", "other"):
        with Checkpoint.open(tmp_path / base) as plain:
            prints.add(plain.fingerprint())
        for adapter in ("one", "two"):
            with opened(tmp_path / base, tmp_path / adapter) as store:
                prints.add(store.fingerprint())
                facts = store.adapter_facts()
                assert (facts["name"], len(facts["fingerprint"])) == (adapter, 64)
    assert len(prints) == 6
