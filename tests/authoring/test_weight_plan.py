"""The plan of weights of a class from outside: what its load_weights fills, and what does not fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import flatlm
from flatlm.errors import CheckpointError
from flatlm.utilities.example import build_model
from flatlm.utilities.reading import Reading
from tests.authoring.checkpoints import LLAMA_MAP, refusal, written


def spoil_weights(directory: Path, spoil: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(directory / "model.safetensors")
    spoil(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_one_error_lists_all_that_does_not_fit(checkpoint: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.mlp.gate_proj.wieght"] = tensors.pop("model.layers.0.mlp.gate_proj.weight")
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:32].clone()
        del tensors["model.layers.1.self_attn.k_proj.bias"], tensors["lm_head.weight"]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    spoil_weights(checkpoint, spoil)
    message = refusal(checkpoint, LLAMA_MAP)
    for part in (
        "config.json and the weights do not agree",
        "model.layers.0.mlp.gate_proj.wieght [96, 64]: load_weights looks for the parameter",
        "does not fill rows 0 to 95 of the parameter model.layers.0.mlp.gate_up_proj.weight [192, 64]",
        "model.norm.weight [32]: load_weights raises ValueError: the parameter must be [64], not [32]",
        "does not fill rows 64 to 95 of the parameter model.layers.1.self_attn.qkv_proj.bias [128]",
        "does not fill the parameter lm_head.weight [128, 64]",
    ):
        assert part in message
    assert "inv_freq" not in message


def test_what_load_weights_passes_over_is_an_error_unless_the_class_says_so(checkpoint: Path, tmp_path: Path) -> None:
    spoil_weights(checkpoint, lambda tensors: tensors.update({"model.layers.0.extra_gate": torch.ones(3)}))
    text = LLAMA_MAP.read_text("utf-8").replace('if "rotary_emb.inv_freq" in name:', 'if "extra" in name:')
    assert "model.layers.0.extra_gate [3] is not used by load_weights" in refusal(checkpoint, written(tmp_path, text))
    said = text.replace("    support_cuda_graph = True\n", '    ignored_weights = ("*.extra_gate",)\n')
    check = flatlm.check_model(checkpoint, custom_module_map=written(tmp_path, said))
    assert check.ok, check.problem
    assert check.ignored == ("model.layers.0.extra_gate",)


def test_a_class_without_load_weights_loads_by_names(made: Path, tmp_path: Path) -> None:
    """And by `packed_modules_mapping`; the plan is that of the class's own table."""
    text = LLAMA_MAP.read_text("utf-8")
    start, stop = text.index("    def load_weights"), text.index("MODULE_MAP =")
    packed = '{"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}'
    text = (text[:start] + text[stop:]).replace("    support_cuda_graph = True\n", f"    packed_modules_mapping = {packed}\n")
    by_names, by_table = (flatlm.check_model(made, custom_module_map=file) for file in (written(tmp_path, text), LLAMA_MAP))
    assert by_names.ok and by_names.weights == by_table.weights
    weights = by_table.weights or {}
    sources = tuple(f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv")
    assert weights["model.layers.0.self_attn.qkv_proj.weight"] == ((128, 64), sources)
    assert weights["embedding.weight"] == ((128, 64), ("model.embed_tokens.weight",))


def test_torch_files_that_hold_more_than_tensors_are_refused(checkpoint: Path) -> None:
    class Sneaky:
        def __reduce__(self) -> Any:
            return (Path.write_text, (checkpoint / "sneaked", "code ran"))

    tensors: dict[str, Any] = dict(load_file(checkpoint / "model.safetensors"))
    (checkpoint / "model.safetensors").unlink()
    torch.save(tensors, checkpoint / "pytorch_model.bin")
    assert flatlm.check_model(checkpoint, custom_module_map=LLAMA_MAP).ok
    torch.save({**tensors, "more": Sneaky()}, checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        build_model(checkpoint, reading=Reading(module_map=LLAMA_MAP))
    assert not (checkpoint / "sneaked").exists()
