"""The quantizer for PyTorch 2 Export, and what becomes of the graph: stored integers, what stays float32, what is refused."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.quant_primitives import quantize_affine

import flatlm.convert
from flatlm.convert import generic, pt2e
from flatlm.errors import RecipeError
from flatlm.quantize import pt2e as quantizer_module
from flatlm.quantize import quant_recipes as recipes
from flatlm.quantize.calibrate import calibrate
from flatlm.quantize.encode import decode, encode, unpack
from flatlm.quantize.method import Method
from flatlm.quantize.pt2e import QUANTIZE, RecipeQuantizer
from flatlm.quantize.recipes import Recipe
from flatlm.quantize.schemes import SCHEMES
from tests.models import Signatures


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 64, bias=False)).eval().requires_grad_(False)


def converted(module: nn.Module, arguments: tuple[Tensor, ...], recipe: Recipe) -> tuple[torch.fx.GraphModule, RecipeQuantizer]:
    quantizer = RecipeQuantizer(recipe, module)
    graph = torch.export.export(module, arguments).module(check_guards=False)
    return convert_pt2e(prepare_pt2e(graph, quantizer), fold_quantize=False), quantizer


@pytest.mark.parametrize("scheme", [s for s in SCHEMES.values() if s.compute != "static" and s.block_size != 128], ids=lambda s: s.name)
def test_the_converted_graph_computes_with_the_encoders_integers(scheme) -> None:
    module, x = mlp(), torch.randn(3, 128)
    recipe = recipes.mixed_recipe("all", embedding=scheme.name, attention=scheme.name, feed_forward=scheme.name, head=scheme.name)
    graph, quantizer = converted(module, (x,), recipe)
    exact = mlp()
    assert set(quantizer.stored) == (set() if scheme.storage == "float32" else {"0.weight", "2.weight"})
    for index in (0, 2):
        weight = exact[index].weight
        encoded = encode(weight, scheme)
        if scheme.storage != "float32":
            stored = quantizer.stored[f"{index}.weight"]
            assert torch.equal(stored.values, unpack(encoded, scheme))
            if stored.scales is not None:
                assert torch.equal(stored.scales, torch.from_numpy(encoded.scales).to(torch.float32).reshape(weight.shape[0], -1))
        weight.data = decode(encoded, scheme, weight.shape)
    assert torch.equal(graph(x), exact(x))


def test_a_tie_is_rounded_by_our_formula_not_by_torchaos() -> None:
    """w / scale and w * (1 / scale) differ in the last bit, which decides where two integers are equally near."""
    linear = nn.Linear(2, 4096, bias=False)
    largest = torch.linspace(0.5, 3, 4096)
    scale = largest / 127
    linear.weight.data = torch.stack([largest, (torch.arange(4096) % 100 + 0.5) * scale], 1)
    _, quantizer = converted(linear, (torch.ones(1, 2),), recipes.full_int8_dynamic_recipe())
    ours = quantizer.stored["weight"].values
    theirs = quantize_affine(linear.weight.detach(), (1, 2), scale, torch.zeros(4096, dtype=torch.int32), torch.int8, -127, 127)
    assert torch.equal(ours, torch.from_numpy(encode(linear.weight.detach(), SCHEMES["dynamic_int8"]).data))
    assert (ours != theirs).any()


def test_static_activations_have_the_recipes_scales_and_zero_points() -> None:
    module, x = mlp(), torch.randn(5, 128)
    recipe = recipes.full_int8_static_recipe(calibrate(module, [(x,)]))
    graph, _ = converted(module, (x,), recipe)
    given = [node.args[1:3] for node in graph.graph.nodes if node.target == QUANTIZE]
    wanted = []
    for name in ("0.weight", "2.weight"):
        ranges = recipe.activations[name]
        wanted += [(affine.scale, affine.zero_point) for affine in (ranges.input.affine(), ranges.output.affine())]
    assert given == wanted
    steps = (graph(x) - module(x)).abs().max() / recipe.activations["2.weight"].output.affine().scale
    assert steps < 6


class Mixed(nn.Module):
    """A convolution, a weight that is added to itself, a table and a linear that share a weight, ids of 64 bits, and a bias on the way."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(8, 8, 3)
        self.twice = nn.Parameter(torch.randn(8, 8))
        self.table = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight
        self.plain = nn.Linear(8, 8)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.conv(self.table(ids).transpose(1, 2)).transpose(1, 2)
        x = nn.functional.linear(x, self.twice) + self.twice[0]
        return self.head(nn.functional.linear(self.plain(x), self.plain.weight, self.plain.bias * 2))


IDS = torch.arange(14).reshape(2, 7)


def test_what_only_linears_and_embeddings_read_is_quantized_and_the_rest_stays_float32(tmp_path: Path) -> None:
    module = Mixed().eval()
    flatlm.convert.convert(module, (IDS,), quant_config=recipes.full_int8_weight_only_recipe()).export(tmp_path / "a.tflite")
    with torch.no_grad():
        for weight in (module.table.weight, module.plain.weight):
            weight.copy_(decode(encode(weight, SCHEMES["dynamic_int8"]), SCHEMES["dynamic_int8"], weight.shape))
        expected = module(IDS).numpy()
    got = Signatures(tmp_path / "a.tflite").run("serving_default", {"args_0": IDS.numpy().astype(np.int32)})
    assert np.abs(next(iter(got.values())) - expected).max() < 1e-5
    content = (tmp_path / "a.tflite").read_bytes()
    assert content.count(encode(module.table.weight, SCHEMES["dynamic_int8"]).data.tobytes()) == 1
    assert content.count(module.twice.detach().numpy().tobytes()) >= 1


def test_signatures_of_modules_with_names_in_common(tmp_path: Path, monkeypatch) -> None:
    """Two modules, each with a weight called 0.weight, that share their second linear: three weights, each encoded once."""
    encoded = []
    monkeypatch.setattr(quantizer_module, "encode", lambda rows, scheme: encoded.append(rows.shape) or encode(rows, scheme))
    first, second = mlp(), mlp()
    second[0].weight.data *= -1
    second[2] = first[2]
    x = torch.randn(4, 128)
    both = flatlm.convert.signature("a", first, (x,)).signature("b", second, (x,))
    both.convert(quant_config=recipes.full_fp16_recipe()).export(tmp_path / "a.tflite")
    assert len(encoded) == 3
    file = Signatures(tmp_path / "a.tflite")
    for name, module in (("a", first), ("b", second)):
        assert np.abs(next(iter(file.run(name, {"args_0": x.numpy()}).values())) - module(x).numpy()).max() < 2e-3
    assert (tmp_path / "a.tflite").read_bytes().count(first[2].weight.to(torch.float16).numpy().tobytes()) == 1


def named(pattern: str, scheme: str) -> Recipe:
    return Recipe.mixed("mine", "none", {pattern: scheme})


class Biases(nn.Module):
    """One weight, two linears with different biases; and a bias that is computed."""

    def __init__(self, *, computed: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.other = (nn.Parameter(torch.ones(shape)) for shape in ((8, 8), (8,), (8,)))
        self.computed = computed

    def forward(self, x: Tensor) -> Tensor:
        if self.computed:
            return nn.functional.linear(x, self.weight, self.bias + x[0])
        return nn.functional.linear(nn.functional.linear(x, self.weight, self.bias), self.weight, self.other)


X = torch.ones(2, 8)
REFUSED = {
    "a pattern that matches nothing": (mlp(), torch.ones(1, 128), named("1.weight", "dynamic_int8"), "'1.weight': misspelt"),
    "a method": (mlp(), torch.ones(1, 128), replace(recipes.full_fp16_recipe(), method=Method("gptq")), "'gptq'.*is for `flatlm export`"),
    "a convolution by name": (Mixed(), IDS, named("conv.*", "dynamic_int8"), "'conv.weight' is read by aten.conv1d.default.*'conv.*'"),
    "a weight that is read otherwise": (Mixed(), IDS, named("twice", "dynamic_int8"), "'twice' is read by aten.select"),
    "a width of odd blocks": (mlp(), torch.ones(1, 128), named("2.*", "dynamic_int4_block128"), "'2.weight'.*not a multiple of 128"),
    "no ranges": (mlp(), torch.ones(1, 128), recipes.full_int8_static_recipe({}), "'0.weight' reads and gives"),
    "bfloat16": (nn.Linear(8, 8).bfloat16(), X.bfloat16(), recipes.full_fp16_recipe(), r"'weight' is torch.bfloat16: call .float\(\)"),
    "a computed bias": (
        Biases(computed=True),
        X,
        recipes.full_int8_static_recipe(calibrate(Biases(computed=True), [(X,)])),
        "the bias of 'weight' is computed",
    ),
    "two biases": (
        Biases(computed=False),
        X,
        recipes.full_int8_static_recipe(calibrate(Biases(computed=False), [(X,)])),
        "'weight', have different biases",
    ),
}


@pytest.mark.parametrize(("module", "x", "recipe", "says"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_is_refused_before_any_work(module: nn.Module, x: Tensor, recipe: Recipe, says: str, monkeypatch) -> None:
    def work(*_: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr(generic, "_lower", work)
    monkeypatch.setattr(pt2e, "prepare_pt2e", work)
    with pytest.raises(RecipeError, match=says):
        flatlm.convert.convert(module, (x,), quant_config=recipe)


def test_the_example_writes_a_file_that_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flatlm.quantize.example", f"--output_path={tmp_path / 'a.tflite'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.startswith(f"{tmp_path / 'a.tflite'}: ") and "by recipe dynamic_int8" in done.stdout
    from flatlm.quantize.example import small_model

    tokens, positions = torch.randint(0, 512, (1, 16), dtype=torch.int32), torch.arange(16, dtype=torch.int32)
    got = Signatures(tmp_path / "a.tflite").run("serving_default", {"args_0": tokens.numpy(), "args_1": positions.numpy()})["output_0"]
    expected = small_model()(tokens, positions)[0].detach().numpy()
    assert got.shape == (1, 16, 512) and np.sqrt(np.mean((got - expected) ** 2)) < 0.05 * expected.std()
