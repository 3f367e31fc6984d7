"""One recipe, two ways: PyTorch 2 Export quantization on the generic path, and the linker of the fast path. The same bits are stored."""

import copy
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema

from flatlm.convert import flatbuffer, generic
from flatlm.convert.decoder import WholeDecoder, stamp_decoder
from flatlm.convert.in_memory import InMemory
from flatlm.convert.link import link_and_write
from flatlm.convert.signatures import signature_specs
from flatlm.convert.weights import WeightLayout
from flatlm.layers.config import (
    Activation,
    AttentionConfig,
    BlockConfig,
    FeedForwardConfig,
    MixtureConfig,
    ModelConfig,
    NormConfig,
    NormKind,
    PositionEmbeddingConfig,
    RopeConfig,
)
from flatlm.layers.kv_cache import empty_caches
from flatlm.layers.model import Decoder
from flatlm.quantize import quant_recipes as recipes
from flatlm.quantize.calibrate import calibrate
from flatlm.quantize.encode import encode
from flatlm.quantize.method import Method
from flatlm.quantize.recipes import RECIPES, Recipe
from flatlm.utilities.calibration.calibrate import calibrate_checkpoint
from flatlm.utilities.calibration.sources import Scratch
from tests.models import Signatures, random_decoder, random_inputs

SPECS = signature_specs((4,), prefill_logits=True)
ROPE = AttentionConfig(16, 8, 8, RopeConfig(8))
LAYER_NORM = NormConfig(NormKind.LAYER, bias=True)
PLAIN = FeedForwardConfig(128, Activation.GELU_TANH, gated=False, bias=True)
MODELS = {
    "tied_llama": ModelConfig(96, 128, (BlockConfig(ROPE, FeedForwardConfig(128)),) * 2, 64, tied_head=True),
    "gpt2": ModelConfig(
        96,
        128,
        (BlockConfig(AttentionConfig(16, 16, 8, None, qkv_bias=True, output_bias=True), PLAIN, LAYER_NORM, LAYER_NORM),) * 2,
        64,
        final_norm=LAYER_NORM,
        head_bias=True,
        position_embedding=PositionEmbeddingConfig(64),
    ),
    "mixture": ModelConfig(96, 128, (BlockConfig(ROPE, MixtureConfig(FeedForwardConfig(128), 3, 2)),), 64),
}


@cache
def model(name: str) -> Decoder:
    return random_decoder(MODELS[name], cache_length=16)


def static(name: str) -> Recipe:
    """Calibrated on three random texts."""
    eager, samples = model(name), []
    for seed in range(3):
        tokens = torch.randint(0, 96, (1, 12), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
        samples.append((tokens, torch.arange(12, dtype=torch.int32), empty_caches(eager.config, eager.geometry)))
    return recipes.full_int8_static_recipe(calibrate(eager, samples))


FULL = {
    "none": lambda name: RECIPES["none"],
    "full_linear_int8_dynamic": lambda name: recipes.full_linear_int8_dynamic_recipe(),
    "full_int8_dynamic": lambda name: recipes.full_int8_dynamic_recipe(),
    "full_int8_weight_only": lambda name: recipes.full_int8_weight_only_recipe(),
    "full_fp16": lambda name: recipes.full_fp16_recipe(),
    "full_int4_block": lambda name: recipes.full_int4_block_recipe(),
    "full_int4_block128": lambda name: recipes.full_int4_block_recipe(128),
    "full_int4_channel": lambda name: recipes.full_int4_channel_recipe(),
    "full_int8_static": static,
    "searched_block": lambda name: RECIPES["searched_int4_block32"],
    "half_quadratic_channel": lambda name: replace(RECIPES["searched_int4_channel"], method=Method("half_quadratic")),
    "mixed": lambda name: recipes.mixed_recipe(
        "mixed", embedding="dynamic_int8", attention="float16", feed_forward="dynamic_int4_block32", head="weight_only_int8"
    ),
    "first_block_apart": lambda name: Recipe.mixed("apart", static(name), {"blocks.0.attention.*": "dynamic_int4_block128"}),
}
CASES = [("tied_llama", recipe) for recipe in FULL]
CASES += [(name, recipe) for name in ("gpt2", "mixture") for recipe in ("full_int8_static", "mixed", "full_int4_block128")]
# Of a standard deviation of the logits, root mean square: where activations are rounded as they come, the two graphs' last bits of float32
# decide some of the roundings otherwise.
ROUNDED, EXACT = 0.05, 1e-4
TOLERANCE = {"none": EXACT, "full_fp16": EXACT, "full_int8_weight_only": EXACT}


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: what lies in its buffer, and its quantization."""

    kind: int
    shape: tuple[int, ...]
    data: bytes
    scales: bytes
    zero_points: bytes


def read(path: Path, weights: Collection[str]) -> dict[str, Stored]:
    """What is stored for the weights, their biases and activations; of all subgraphs, which must agree and share one place in the file."""
    content = path.read_bytes()
    parsed, found, places = flatbuffer.parse(content), {}, {}
    for graph in parsed.subgraphs:
        for tensor in graph.tensors:
            name = tensor.name.decode()
            if name.split("/")[0] in weights and not name.endswith(("/float32", "/rows")):
                buffer, quantization = parsed.buffers[tensor.buffer], tensor.quantization or schema.QuantizationParametersT()
                place = (buffer.offset, buffer.size)
                assert places.setdefault(name, place) == place, f"{name} is stored twice"
                scales = np.asarray([] if quantization.scale is None else quantization.scale, np.float32)
                zeros = np.asarray([] if quantization.zeroPoint is None else quantization.zeroPoint, np.int64)
                shape = () if name.endswith(("/input", "/output")) else tuple(map(int, tensor.shape))
                data = content[buffer.offset : buffer.offset + buffer.size] if buffer.size else b""
                stored = Stored(tensor.type, shape, data, scales.tobytes(), zeros.tobytes())
                assert found.setdefault(name, stored) == stored, name
    return found


@cache
def skeleton(name: str) -> object:
    return stamp_decoder(model(name).config, model(name).geometry, SPECS)


def stream(name: str, recipe: Recipe, path: Path) -> Path:
    sources = {key: InMemory(value.data) for key, value in model(name).named_parameters()}
    with Scratch(path.parent) as scratch:
        layout = WeightLayout(calibrate_checkpoint(model(name).config, sources, recipe, scratch).sources, recipe)
    with path.open("w+b") as file:
        link_and_write(copy.deepcopy(skeleton(name)), layout, file.fileno())
    return path


def through_pt2e(name: str, recipe: Recipe) -> generic.ConvertedModel:
    builder = generic.Signatures()
    for spec in SPECS:
        whole = WholeDecoder(model(name), spec)
        builder = builder.signature(spec.name, whole, sample_kwargs=whole.sample_inputs())
    return builder.convert(quant_config=recipe)


@pytest.fixture(scope="module", autouse=True)
def lowered_once():
    """Recipes change no graph, only what the linker puts in: litert-torch, which takes most of the time, sees each model's graph once."""
    lower, seen = generic._lower, {}

    def lower_once(entries):
        if not all(isinstance(module, torch.fx.GraphModule) for _, module, _, _ in entries):
            return lower(entries)  # the fast path's pieces
        key = str([(name, described(module.graph)) for name, module, _, _ in entries])
        if key not in seen:
            seen[key] = lower(entries)
        return seen[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generic, "_lower", lower_once)
        yield
    assert len(seen) <= len(MODELS) + 1  # and the plain module's


def described(graph: torch.fx.Graph) -> list[object]:
    """A graph without the names of its nodes."""
    number = {node: index for index, node in enumerate(graph.nodes)}

    def plain(value: object) -> object:
        return torch.fx.map_arg(value, lambda node: number[node])

    return [(node.op, str(node.target), plain(node.args), plain(node.kwargs)) for node in graph.nodes]


@pytest.mark.parametrize(("name", "which"), CASES, ids=lambda value: value)
def test_the_same_bits_from_both(name: str, which: str, tmp_path: Path) -> None:
    recipe = FULL[which](name)
    through_pt2e(name, recipe).export(tmp_path / "pt2e.tflite")
    streamed, exported = stream(name, recipe, tmp_path / "streamed.tflite"), tmp_path / "pt2e.tflite"
    matrices = {key: value for key, value in model(name).named_parameters() if value.ndim == 2}
    ours, theirs = read(streamed, matrices), read(exported, matrices)
    assert ours.keys() == theirs.keys() >= matrices.keys()
    for key in ours:
        assert ours[key] == theirs[key], key
    for key, value in matrices.items() if recipe.method.rounding == "nearest" else ():
        assert ours[key].data == encode(value, recipe.scheme_for(key)).data.tobytes()
    for spec in SPECS:
        inputs = random_inputs(model(name), spec.tokens, start=0)
        inputs |= {key: np.zeros_like(value) for key, value in inputs.items() if key.startswith("kv_cache")}
        a, b = (Signatures(path).run(spec.name, inputs)["logits"] for path in (streamed, exported))
        assert np.sqrt(np.mean((a - b) ** 2)) <= TOLERANCE.get(which, ROUNDED) * a.std(), spec.name


@pytest.mark.parametrize("which", ["full_int8_dynamic", "full_fp16", "full_int4_block128", "full_int4_channel", "static"])
def test_a_plain_modules_file_holds_what_the_encoder_gives(which: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(128, 256), torch.nn.ReLU(), torch.nn.Linear(256, 32, bias=False)).eval()
    x = torch.randn(5, 128)
    recipe = recipes.full_int8_static_recipe(calibrate(module, [(x,)])) if which == "static" else FULL[which]("")
    generic.convert(module, (x,), quant_config=recipe).export(tmp_path / "a.tflite")
    found = read(tmp_path / "a.tflite", ["0.weight", "2.weight"])
    for name, layer in (("0.weight", module[0]), ("2.weight", module[2])):
        encoded = encode(layer.weight.detach(), recipe.scheme_for(name))
        assert found[name].data == encoded.data.tobytes()
        if encoded.scales is not None:
            scales = found[f"{name}/scales"].data if f"{name}/scales" in found else found[name].scales
            assert scales == encoded.scales.tobytes()
        if which == "static":
            for side, values in (("input", recipe.activations[name].input), ("output", recipe.activations[name].output)):
                affine = values.affine()
                assert np.frombuffer(found[f"{name}/{side}"].scales, np.float32)[0] == affine.scale
                assert np.frombuffer(found[f"{name}/{side}"].zero_points, np.int64)[0] == affine.zero_point
    got = next(iter(Signatures(tmp_path / "a.tflite").run("serving_default", {"args_0": x.numpy()}).values()))
    expected = module(x).detach().numpy()
    assert np.sqrt(np.mean((got - expected) ** 2)) < (0.3 if "int4" in which else 0.03) * expected.std()
