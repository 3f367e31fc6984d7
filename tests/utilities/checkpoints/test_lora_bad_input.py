"""Adapters that cannot be merged: each is one error that names the file and the tensor or key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.directory import Checkpoint
from flatlm.utilities.checkpoints.open import open_checkpoint
from tests.examples.references import Case, make_llama
from tests.models import tiny_config
from tests.utilities.checkpoints.test_lora import ATTENTION, PREFIX, WEIGHTS, edit, opened, train


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, and adapters `plain` and `dora` of it."""
    path = tmp_path_factory.mktemp("lora")
    train(make_llama(Case("base"), path / "base"), path / "plain")
    train(make_llama(Case("base"), path / "base"), path / "dora", use_dora=True)
    return path


@pytest.fixture
def adapter(original: Path, tmp_path: Path) -> Path:
    return copied(original / "plain", tmp_path / "adapter")


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


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"layer_replication": [[0, 2], [1, 3]]},
            "FlatLM does not merge an adapter with layer_replication = [[0, 2], [1, 3]]; supported",
        ),
        ({"use_qalora": True}, "use_qalora = true; supported are"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
        ({"kasa_config": {"x": 1}}, "kasa_config"),
        ({"arrow_config": {"x": 1}}, "arrow_config"),
        ({"use_bdlora": {"x": 1}}, "use_bdlora"),
        ({"monteclora_config": {"x": 1}}, "monteclora_config"),
        ({"a_key_of_tomorrow": 0.5}, "a_key_of_tomorrow = 0.5; supported are r, lora_alpha"),
        ({"peft_type": "IA3"}, 'peft_type = "IA3" is not supported, only LORA is'),
        ({"peft_type": None}, "peft_type = null is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the base's weights before training; save the adapter with path_initial_model"),
        ({"bias": "some"}, 'bias = "some" is not one of none, all, lora_only'),
        ({"r": "4"}, 'r = "4" is not a int'),
        ({"r": 0}, "rank_pattern gives 0"),
        ({"use_dora": 1}, "use_dora = 1 is not a bool"),
        ({"lora_alpha": True}, "lora_alpha = true is not a int or float"),
        ({"rank_pattern": {"q_proj": "x"}}, 'rank_pattern gives "x" for model.layers.0.self_attn.q_proj'),
        ({"alpha_pattern": {"(": 2}}, "alpha_pattern has '(', which is no regular expression"),
        ({"rank_pattern": {"q_proj": 5}}, "has shape [4, 64], but adapter_config.json gives model.layers.0.self_attn.q_proj rank 5"),
        ({"r": 8}, "rank 8; use files of one adapter"),
        ({"target_modules": [*ATTENTION, "up_proj"]}, "has no tensors for model.layers.0.mlp.up_proj, model.layers.1.mlp.up_proj"),
        ({"modules_to_save": ["lm_head"]}, "has no lm_head.weight, though adapter_config.json names lm_head in modules_to_save"),
        ({"use_dora": True}, "has no lora_magnitude_vector beside it, which use_dora asks for"),
        ({"lora_bias": True}, "has no lora_B.bias beside it, which lora_bias asks for"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_the_configuration_may_not_say(original: Path, adapter: Path, changes: dict[str, Any], complaint: str) -> None:
    edit(adapter, **changes)
    assert complaint in refusal(original / "base", adapter)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_replication": []},
        {"task_type": "CAUSAL_LM", "base_model_name_or_path": "/nowhere", "lora_dropout": 0.3, "megatron_core": "x", "revision": "main"},
        {"target_modules": [*ATTENTION, "nothing_such"]},
        {"target_modules": ".*_proj"},
        {"modules_to_save": ["nothing_such"]},
        {"a_key_of_tomorrow": None, "another": False},
    ],
)
def test_what_the_configuration_may_say(original: Path, adapter: Path, changes: dict[str, Any]) -> None:
    edit(adapter, **changes)
    opened(original / "base", adapter).close()


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


def test_a_tied_head_without_its_own_weights(tmp_path: Path) -> None:
    train(make_llama(Case("tied", {"tie_word_embeddings": True}), tmp_path / "base"), tmp_path / "adapter", target_modules=["lm_head"])
    rewrite(tmp_path / "adapter", lambda tensors: tensors.pop("base_model.model.lm_head.base_layer.weight"))
    assert "is for the head, whose own weights are neither in the adapter" in refusal(tmp_path / "base", tmp_path / "adapter")


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
