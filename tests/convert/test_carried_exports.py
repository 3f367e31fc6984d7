"""Exported files have the integers of their quantized checkpoints, as the flatbuffer's schema alone reads them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from safetensors.torch import load_file, save_file
from torch import Tensor

from flatlm.cli import main
from flatlm.convert.weights import WeightLayout
from flatlm.errors import CheckpointError
from flatlm.generative.verify import verify
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.configs.registry import build_config
from flatlm.utilities.exporter import ExportRequest, export, plan_export
from flatlm.utilities.weights.loader import ModelLoader
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
    save_llama,
)


def part(linears: dict[str, Linear], layer: int, *names: str) -> tuple[Tensor, Tensor]:
    """The integers and scales of a weight that is made of projections."""
    parts = [linears[f"model.layers.{layer}.{name}"] for name in names]
    return torch.cat([one.integers for one in parts]), torch.cat([one.scales for one in parts]).float()


WEIGHTS = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.output": ("self_attn.o_proj",),
    "feed_forward.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "feed_forward.down": ("mlp.down_proj",),
}
CHECKPOINTS: dict[str, tuple[Callable[[Linear], dict[str, Tensor]], dict[str, Any], int, int | None, str]] = {
    "gptq": (gptq, gptq_config(), 4, 32, "dynamic_int4_block32"),
    "gptq_128": (gptq, gptq_config(group_size=128), 4, 128, "dynamic_int4_block128"),
    "awq": (awq, awq_config(), 4, 32, "dynamic_int4_block32"),
    "packed": (pack_quantized, compressed_config("pack-quantized"), 4, 32, "dynamic_int4_block32"),
    "int8": (
        int_quantized,
        compressed_config("int-quantized", num_bits=8, strategy="channel", group_size=None),
        8,
        None,
        "dynamic_int8",
    ),
}


def save_checkpoint(directory: Path, form: str, asymmetric: str = "nothing") -> dict[str, Linear]:
    packer, settings, bits, group_size, _ = CHECKPOINTS[form]
    return save_llama(
        directory,
        settings,
        packer,
        lambda name, rows, columns, seed: random_linear(
            rows, columns, bits=bits, group_size=group_size, symmetric=asymmetric not in name, seed=seed, dtype=torch.bfloat16
        ),
    )


def in_file(path: Path, name: str) -> tuple[Tensor, Tensor]:
    """The integers and scales of a weight of an exported file, read by the flatbuffer's schema alone."""
    content = path.read_bytes()
    model = schema.Model.GetRootAs(content, 0)
    graphs = [model.Subgraphs(i) for i in range(model.SubgraphsLength())]  # one of them may need fewer weights
    graph, tensor = next(
        (graph, graph.Tensors(i)) for graph in graphs for i in range(graph.TensorsLength()) if graph.Tensors(i).Name() == name.encode()
    )

    def data(of: schema.Tensor) -> bytes:
        buffer = model.Buffers(of.Buffer())
        return content[buffer.Offset() : buffer.Offset() + buffer.Size()]

    rows, columns = tensor.ShapeAsNumpy().tolist()
    integers = np.frombuffer(data(tensor), np.int8)
    if tensor.Type() == schema.TensorType.INT4:
        integers = np.stack((integers << 4 >> 4, integers >> 4), -1)
    quantization = tensor.Quantization()
    if quantization.DetailsType() == schema.QuantizationDetails.BlockwiseQuantization:
        details = schema.BlockwiseQuantization()
        details.Init(quantization.Details().Bytes, quantization.Details().Pos)
        scales = np.frombuffer(data(graph.Tensors(details.Scales())), np.float16)
    else:
        scales = quantization.ScaleAsNumpy()
    return torch.from_numpy(integers.reshape(rows, columns).copy()), torch.from_numpy(scales.reshape(rows, -1).astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("form", CHECKPOINTS)
def test_an_exported_file_has_the_integers_of_its_checkpoint(form: str, tmp_path: Path) -> None:
    linears = save_checkpoint(tmp_path / "checkpoint", form)
    recipe = get_recipe(CHECKPOINTS[form][-1])
    report = export(ExportRequest(tmp_path / "checkpoint", tmp_path / "model.tflite", recipe, (4,), 256))
    assert report.integers is not None
    assert report.integers.startswith("8 weights carried over unchanged")
    assert "re-encoded" not in report.integers
    manifest = json.loads((tmp_path / "model.tflite.manifest.json").read_text())
    assert manifest["integers"]["carried"] == 8
    for layer in range(2):
        for weight, projections in WEIGHTS.items():
            integers, scales = in_file(tmp_path / "model.tflite", f"blocks.{layer}.{weight}.weight")
            expected, given = part(linears, layer, *projections)
            assert torch.equal(integers.long(), expected.clamp_min(-127))
            assert torch.equal(scales, given)
    moved = sum(int((linear.integers < -127).sum()) for linear in linears.values())
    assert manifest["integers"]["moved"] == moved
    # The file computes as the checkpoint's exact values do: of the rounding there is only that of the activations, the embedding and head.
    judged = verify(tmp_path / "model.tflite", tmp_path / "checkpoint", tokens=32)
    assert judged.against == "eager"


@pytest.mark.parametrize("form", CHECKPOINTS)
def test_merged_weights_are_carried_when_all_their_parts_are(form: str, tmp_path: Path) -> None:
    for asymmetric, report in {
        "nothing": "8 weights carried over unchanged",
        "k_proj": "6 weights carried over unchanged, 2 re-encoded (asymmetric)",
        "down_proj": "6 weights carried over unchanged, 2 re-encoded (asymmetric)",
    }.items():
        if form in ("packed", "int8") and asymmetric != "nothing":
            continue  # whose configuration says of all alike that they are symmetric
        save_checkpoint(tmp_path / asymmetric, form, asymmetric)
        config, builder = build_config(tmp_path / asymmetric)
        with open_checkpoint(tmp_path / asymmetric) as checkpoint:
            plan = ModelLoader(checkpoint, builder.tensor_names).plan(config)
            layout = WeightLayout(plan.weights, get_recipe(CHECKPOINTS[form][-1]))
            assert str(layout.carry) == report
            qkv = plan.weights["blocks.1.attention.qkv.weight"]
            whole, some = qkv.rows(0, qkv.shape[0]), qkv.rows(100, 150)
            assert torch.equal(whole[100:150], some)
            if asymmetric == "nothing":
                rows = qkv.integer_rows(100, 150)
                groups = rows.scales.repeat_interleave(128 // rows.scales.shape[1], 1)
                assert torch.equal(rows.integers.float() * groups, some)


def test_biases_of_zeros_that_a_quantizer_wrote_are_left_out(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "gptq")
    file = tmp_path / "model.safetensors"
    biases = {"model.layers.0.mlp.up_proj.bias": torch.zeros(256)}
    save_file(load_file(file) | biases, file)
    config, builder = build_config(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        assert ModelLoader(checkpoint, builder.tensor_names).plan(config).ignored == ("model.layers.0.mlp.up_proj.bias",)
    save_file(load_file(file) | {"model.layers.0.mlp.up_proj.bias": torch.ones(256)}, file)
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match=r"up_proj\.bias.*not used"):
        ModelLoader(checkpoint, builder.tensor_names).plan(config)


def adapter_for(directory: Path, module: str, **more: Tensor) -> Path:
    """An adapter for one module of 256 rows and 128 columns, and tensors stored whole."""
    directory.mkdir()
    name = f"base_model.model.{module}"
    factors = {f"{name}.lora_A.weight": torch.randn(2, 128), f"{name}.lora_B.weight": torch.randn(256, 2)}
    save_file({**factors, **{f"base_model.model.{key}": value for key, value in more.items()}}, directory / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": [module]}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return directory


def test_an_adapter_leaves_the_integers_of_other_weights(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "base", "gptq")
    lora = adapter_for(tmp_path / "lora", "model.layers.0.mlp.up_proj")
    config, builder = build_config(tmp_path / "base")
    request = ExportRequest(tmp_path / "base", tmp_path / "model.tflite", get_recipe("dynamic_int4_block32"), (4,), 256, lora=lora)
    with open_checkpoint(tmp_path / "base") as base, open_checkpoint(tmp_path / "base", lora=lora) as adapted:
        assert (
            str(plan_export(adapted, request).layout.carry)
            == "7 weights carried over unchanged, 1 re-encoded (an adapter was merged into it)"
        )
        before, after = (ModelLoader(store, builder.tensor_names).plan(config).weights for store in (base, adapted))
        for name in set(before) - {"blocks.0.feed_forward.gate_up.weight"}:
            assert after[name].stored_integers() == before[name].stored_integers()
            if before[name].stored_integers() is not None:
                here, there = (weights[name].integer_rows(3, 40) for weights in (before, after))
                assert torch.equal(here.integers, there.integers)
                assert torch.equal(here.scales, there.scales)


def test_biases_of_zeros_beside_an_adapter(tmp_path: Path) -> None:
    """Left out as they are without one, and no longer where the adapter brings others."""
    save_checkpoint(tmp_path / "base", "gptq")
    file, bias = tmp_path / "base" / "model.safetensors", "model.layers.0.mlp.up_proj.bias"
    save_file(load_file(file) | {bias: torch.zeros(256)}, file)
    config, builder = build_config(tmp_path / "base")
    with open_checkpoint(tmp_path / "base", lora=adapter_for(tmp_path / "lora", "model.layers.1.mlp.up_proj")) as checkpoint:
        assert ModelLoader(checkpoint, builder.tensor_names).plan(config).ignored == (bias,)
    lora = adapter_for(tmp_path / "other", "model.layers.1.mlp.up_proj", **{bias: torch.ones(256)})
    with open_checkpoint(tmp_path / "base", lora=lora) as checkpoint, pytest.raises(CheckpointError, match=r"up_proj\.bias.*not used"):
        ModelLoader(checkpoint, builder.tensor_names).plan(config)


def test_check_names_the_recipe_that_carries_the_integers_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(tmp_path, "gptq_128")
    assert main(["check", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "--recipe dynamic_int4_block128 is the smallest that carries the most of them over" in printed
    assert re.search(r"dynamic_int4_block32 +8 weights carried over unchanged", printed)
    assert re.search(r"dynamic_int8 +6 weights carried over unchanged.*, 2 re-encoded \(groups of 128 to one scale a channel\)", printed)
    assert main(["check", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["integers"]["dynamic_int4_block128"]["carried"] == 8
