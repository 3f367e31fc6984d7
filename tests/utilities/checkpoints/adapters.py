"""Adapters made by peft itself, changed by hand, and opened."""

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

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.lora import LoraStore
from flatlm.utilities.checkpoints.open import open_checkpoint

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
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


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def rewrite(adapter: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, adapter / WEIGHTS)


def refusal(base: Path, adapter: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(base, lora=adapter)
    assert str(adapter) in str(caught.value)
    return str(caught.value)
