"""Adapters made by peft itself: the weights that FlatLM reads are those that peft merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from flatlm.utilities.checkpoints.directory import Checkpoint
from tests.examples.references import Case, make_llama
from tests.models import tiny_config
from tests.utilities.checkpoints.adapters import LINEAR, WEIGHTS, edit, opened, refusal, require_equal, train

BIASES = {"attention_bias": True, "mlp_bias": True}
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


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True},
        {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
        {"modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
        {"modules_to_save": ["embed_tokens", "lm_head"], "resize": 130},
    ],
    ids=str,
)
def test_a_tied_head_comes_apart_as_it_was_trained(tmp_path: Path, options: dict[str, Any]) -> None:
    """peft's merge adds to the one tensor of both; what the adapted model computes is the truth."""
    size = options.get("resize", 128)
    train(make_llama(Case("tied", {"tie_word_embeddings": True}), tmp_path / "base"), tmp_path / "adapter", **options)
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    if size != 128:
        model.resize_token_embeddings(size, mean_resizing=False)
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    merged = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base", tie_word_embeddings=False)
    merged.resize_token_embeddings(size, mean_resizing=False)
    with opened(tmp_path / "base", tmp_path / "adapter") as store:
        fitted = store.fit(tiny_config(vocab=128, tied=True), embedding=EMBEDDING, head=HEAD)
        assert (fitted.tied_head, fitted.vocab_size) == (False, size)
        assert store.read(HEAD).shape == store.tensors[HEAD].shape == (size, 64)
        merged.load_state_dict({name: store.read(name) for name in store.tensors})
    ids = torch.arange(0, 120, 7)[None]
    with torch.no_grad():
        assert torch.allclose(merged.eval()(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_tied_head_stays_tied_where_the_adapter_leaves_both_alone(tmp_path: Path) -> None:
    train(make_llama(Case("tied", {"tie_word_embeddings": True}), tmp_path / "base"), tmp_path / "adapter")
    with opened(tmp_path / "base", tmp_path / "adapter") as store:
        assert store.fit(tiny_config(tied=True), embedding=EMBEDDING, head=HEAD) == tiny_config(tied=True)
        assert HEAD not in store.tensors


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


def test_what_is_no_adapter(original: Path, adapter: Path, tmp_path: Path) -> None:
    base = original / "base"
    assert "does not exist; give the directory that holds adapter_config.json" in refusal(base, tmp_path / "nowhere")
    assert "is not a directory" in refusal(base, adapter / WEIGHTS)
    assert "has no adapter_config.json" in refusal(base, base)
    for content, complaint in (
        (b"{", "is not JSON"),
        (b"[]", "holds a list, not an object"),
        (b"\xff", "is not JSON"),
        (b"[" * 10**6, "JSON"),
    ):
        (adapter / "adapter_config.json").write_bytes(content)
        assert complaint in refusal(base, adapter)
    (adapter / "adapter_config.json").write_bytes((original / "plain" / "adapter_config.json").read_bytes())
    whole = (adapter / WEIGHTS).read_bytes()
    for content, complaint in (
        (whole[:-9], "is truncated"),
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/", "Git LFS pointer"),
    ):
        (adapter / WEIGHTS).write_bytes(content)
        assert complaint in refusal(base, adapter)
    (adapter / WEIGHTS).unlink()
    assert "has neither adapter_model.safetensors nor adapter_model.bin" in refusal(base, adapter)


def test_a_refused_adapter_leaves_nothing_open(original: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(adapter, r=8)
    closed: list[Path] = []
    close = Checkpoint.close
    monkeypatch.setattr(Checkpoint, "close", lambda self: (closed.append(self.directory), close(self))[1])
    refusal(original / "base", adapter)
    assert closed == [adapter, original / "base"]
    with opened(original / "base", original / "plain") as store:
        pass
    assert closed[2:] == [original / "plain", original / "base"]
    with pytest.raises(ValueError, match="was closed"):
        store.read("model.norm.weight")
