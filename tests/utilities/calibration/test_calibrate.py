"""A whole model calibrated in memory: what is chosen, what is left alone, how near it stays, and what is held meanwhile."""

import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flatlm.convert.in_memory import InMemory
from flatlm.convert.weights import WeightLayout, WeightSource
from flatlm.errors import CheckpointError, RecipeError
from flatlm.layers.config import FeedForwardConfig, MixtureConfig
from flatlm.layers.model import Decoder
from flatlm.quantize import calibrate as eager
from flatlm.quantize.activations import ActivationRange
from flatlm.quantize.carried import IntegerRows, StoredIntegers
from flatlm.quantize.encode import Encoded, decode, encode, unpack
from flatlm.quantize.method import PLAIN, Method
from flatlm.quantize.recipes import Recipe, get_recipe
from flatlm.quantize.scale_search import round_rows
from flatlm.utilities.calibration import calibrate as module
from flatlm.utilities.calibration.calibrate import Calibrated, calibrate_checkpoint
from flatlm.utilities.calibration.sources import Changed, Scratch, Searched, Solved, _Chosen
from flatlm.utilities.calibration.stream import ModelStream
from tests.models import random_decoder, tiny_config
from tests.utilities.calibration.models import TOKENS, doubled, logits, other_padding, random_text, random_tokens, sources_of, tiny

BLOCKS, CHANNELS = get_recipe("dynamic_int4_block32"), get_recipe("dynamic_int4_channel")
GPTQ = Method("gptq")
MIXED = replace(
    Recipe.mixed("mixed", BLOCKS, {"*.attention.qkv.*": "dynamic_int8", "*.down.*": "dynamic_int4_channel", "lm_head.*": "float16"}),
    method=GPTQ,
)
MIXTURE = MixtureConfig(FeedForwardConfig(64), 3, 2)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch]:
    with Scratch(tmp_path) as scratch:
        yield scratch
    assert list(tmp_path.iterdir()) == []


def mixture() -> Decoder:
    config = tiny_config(dim=64, heads=8, kv_heads=4)
    return random_decoder(
        replace(config, blocks=tuple(replace(block, feed_forward=MIXTURE) for block in config.blocks)), cache_length=TOKENS
    )


def calibrated(model: Decoder, recipe: Recipe, scratch: Scratch, **sources: WeightSource) -> Calibrated:
    return calibrate_checkpoint(model.config, {**sources_of(model), **sources}, recipe, scratch, text=random_text(model.config, 40))


def written(chosen: Calibrated, path: Path) -> dict[str, tuple[Tensor, np.ndarray[Any, Any] | None]]:
    """What the linker writes of every weight, taken from the bytes: the stored numbers and the scales."""
    layout = WeightLayout(chosen.sources, chosen.recipe)
    with path.open("w+b") as file:
        channel_scales = layout.write(file.fileno(), 0)
        content = os.pread(file.fileno(), layout.size, 0)
    path.unlink()
    found = {}
    for name, weight in layout.weights.items():
        dtype = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "int4": np.uint8}[weight.scheme.storage]
        data = np.frombuffer(content, dtype, weight.data_size // np.dtype(dtype).itemsize, weight.data_offset).reshape(weight.matrix[0], -1)
        scales = channel_scales.get(name)
        if weight.scales_offset is not None:
            scales = np.frombuffer(content, np.float16, weight.block_scales_size // 2, weight.scales_offset)
        found[name] = (unpack(Encoded(data, None), weight.scheme), scales)
    return found


@pytest.mark.parametrize("tied", [False, True], ids=["own_head", "tied_head"])
@pytest.mark.parametrize("recipe", [replace(BLOCKS, method=GPTQ), replace(CHANNELS, method=GPTQ), MIXED], ids=lambda recipe: recipe.name)
def test_the_integers_that_were_solved_for_are_written(recipe: Recipe, tied: bool, scratch: Scratch, tmp_path: Path) -> None:
    model = tiny(tied=tied, bias=True)
    chosen = calibrated(model, recipe, scratch)
    solved = {name for name, source in chosen.sources.items() if isinstance(source, Solved)}
    four_bits = {name for name, source in chosen.sources.items() if recipe.scheme_for(name, source.shape).storage == "int4"}
    assert solved == four_bits - ({"embedding.weight"} if not tied else set())
    assert isinstance(chosen.sources["embedding.weight"], _Chosen)
    in_file = written(chosen, tmp_path / "file")
    for name in four_bits:
        source = chosen.sources[name]
        assert isinstance(source, Solved | Searched)
        rows = source.integer_rows(0, source.shape[0])
        integers, scales = in_file[name]
        assert torch.equal(integers, rows.integers)
        assert scales is not None
        assert np.array_equal(scales.astype(np.float32).reshape(rows.scales.shape), rows.scales.numpy())
        assert torch.equal(torch.cat([source.rows(0, 5), source.rows(5, source.shape[0])]), source.rows(0, source.shape[0]))
    for name in chosen.sources.keys() - four_bits:  # int8 and floats are as ever
        assert isinstance(chosen.sources[name], InMemory)
        scheme, parameter = recipe.scheme_for(name), dict(model.named_parameters())[name].data
        plain = encode(parameter if parameter.dim() == 2 else parameter[None], scheme)
        assert torch.equal(in_file[name][0], unpack(plain, scheme))


def divergence(model: Decoder, chosen: Calibrated) -> float:
    """Mean KL of the model with the chosen weights from the model, on other text."""
    tokens = random_tokens(model.config, 16, seed=77)
    p = logits(doubled(model.config, sources_of(model)), tokens).log_softmax(-1)
    stored = {}
    for name, source in chosen.sources.items():
        scheme, values = chosen.recipe.scheme_for(name, source.shape), source.rows(0, source.shape[0]).float()
        stored[name] = InMemory(
            values if isinstance(source, _Chosen) or not scheme.quantized else decode(encode(values, scheme), scheme, values.shape)
        )
    q = logits(doubled(model.config, stored), tokens).log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("base", [BLOCKS, CHANNELS], ids=lambda recipe: recipe.name)
def test_every_method_stays_nearer_than_rounding(base: Recipe, scratch: Scratch) -> None:
    model = tiny()

    def kl(method: Method) -> float:
        return divergence(model, calibrated(model, replace(base, method=method), scratch))

    plain = kl(PLAIN)
    assert kl(Method("scale_search")) < plain
    assert kl(GPTQ) < 0.75 * plain
    assert kl(Method(migrate=True)) < plain
    assert kl(Method("gptq", migrate=True)) < 0.75 * plain
    assert kl(Method("gptq", rotate=True)) < 0.8 * plain
    assert kl(Method("scale_search", rotate=True, migrate=True)) < plain


@pytest.mark.parametrize(
    "method", [Method(migrate=True), Method(smooth=0.5), Method(rotate=True), Method("gptq", rotate=True, migrate=True)], ids=str
)
@pytest.mark.parametrize("make", [tiny, mixture], ids=["dense", "mixture"])
def test_where_nothing_is_rounded_nothing_changes(make: Callable[[], Decoder], method: Method, scratch: Scratch) -> None:
    model = make()
    recipe = replace(CHANNELS if method.migrate else get_recipe("none"), method=method)  # scales are moved where something is rounded
    chosen = calibrated(model, recipe, scratch)
    moved = {name: source.source if isinstance(source, _Chosen) else source for name, source in chosen.sources.items()}
    assert any(isinstance(source, Changed) for source in moved.values())
    assert divergence(model, Calibrated(moved, get_recipe("none"))) < 1e-9


def test_rounding_to_the_nearest_is_that_whatever_else_is_done(scratch: Scratch) -> None:
    """A recipe of static int8 and of int4 that names no method: its int4 has the integers that every other way gives."""
    model = tiny()
    static = Recipe.mixed("static", BLOCKS, {"*.attention.*": "static_int8"})
    assert static.needs_text(sources_of(model))
    chosen = calibrated(model, static, scratch)
    assert all(isinstance(source, InMemory) for source in chosen.sources.values())
    smoothed = calibrated(model, replace(BLOCKS, method=Method(smooth=0.5)), scratch)
    assert isinstance(smoothed.sources["blocks.0.attention.qkv.weight"], Changed)
    assert not any(isinstance(source, _Chosen) for source in smoothed.sources.values())


@pytest.mark.parametrize("rounding", ["scale_search", "half_quadratic"])
def test_searched_rows_need_no_text(rounding: str, scratch: Scratch) -> None:
    model = tiny()
    recipe = replace(BLOCKS, method=Method(rounding))  # type: ignore[arg-type]
    chosen = calibrate_checkpoint(model.config, sources_of(model), recipe, scratch)
    source = chosen.sources["blocks.1.feed_forward.down.weight"]
    assert isinstance(source, Searched)
    found = source.integer_rows(3, 40)
    expected = round_rows(model.blocks[1].feed_forward.down.weight.data, source.scheme, rounding)  # type: ignore[arg-type]
    assert torch.equal(found.integers, expected.integers[3:40])
    assert torch.equal(found.scales, expected.scales[3:40])
    with pytest.raises(RecipeError, match="needs calibration text"):
        calibrate_checkpoint(model.config, sources_of(model), replace(recipe, method=GPTQ), scratch)


class Integers(InMemory):
    """A weight that the checkpoint holds as integers."""

    def __init__(self, values: Tensor) -> None:
        rows = round_rows(values, BLOCKS.scheme_for("x"), "scale_search")
        super().__init__(rows.integers.float() * rows.scales.repeat_interleave(32, 1))
        object.__setattr__(self, "own", rows)

    def stored_integers(self) -> StoredIntegers:
        return StoredIntegers(4, 32, smallest_scale=float(self.own.scales.min()), largest_scale=float(self.own.scales.max()))

    def integer_rows(self, start: int, stop: int) -> IntegerRows:
        return IntegerRows(self.own.integers[start:stop], self.own.scales[start:stop])


@pytest.mark.parametrize("name", ["attention.output", "attention.qkv", "feed_forward.gate_up", "feed_forward.down"])
@pytest.mark.parametrize("method", [GPTQ, Method("scale_search"), Method("gptq", migrate=True), Method(smooth=0.5)], ids=str)
def test_integers_of_the_checkpoint_are_kept(method: Method, name: str, scratch: Scratch, tmp_path: Path) -> None:
    model, full = tiny(bias=True), f"blocks.0.{name}.weight"
    kept = Integers(dict(model.named_parameters())[full].data)
    chosen = calibrated(
        model, replace(BLOCKS, method=method), scratch, **{full: kept, "embedding.weight": Integers(model.embedding.weight.data)}
    )
    assert chosen.sources[full] is kept
    assert isinstance(chosen.sources["embedding.weight"], Integers)
    assert torch.equal(written(chosen, tmp_path / "file")[full][0], kept.own.integers)
    assert not isinstance(chosen.sources["blocks.1.attention.output.weight"], Integers)
    with pytest.raises(RecipeError, match=rf"the checkpoint holds .*{full if name < 'b' else 'weight'} as integers"):
        calibrated(model, replace(BLOCKS, method=Method(rotate=True)), scratch, **{full: kept})


def test_a_router_is_solved_for_before_its_experts(scratch: Scratch) -> None:
    model = mixture()
    chosen = calibrated(model, replace(CHANNELS, method=GPTQ), scratch)
    names = {name for name in chosen.sources if ".feed_forward." in name}
    assert len(names) == 2 * (1 + 2 * 3)
    assert all(isinstance(chosen.sources[name], Solved) for name in names)
    stages = list(module._Calibration._stages(None, model.blocks[0]))  # type: ignore[arg-type]
    assert stages[:3] == [["attention.qkv"], ["attention.output"], ["feed_forward.router"]]


@pytest.mark.parametrize("make", [tiny, mixture], ids=["dense", "mixture"])
def test_what_the_calibration_goes_on_with_is_what_the_file_computes(
    make: Callable[[], Decoder], scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for its activations' rounding, which is left out here: the last block's outputs, and those of the exact model."""
    model, seen = make(), []
    monkeypatch.setattr(module, "_int8_rows", lambda x: x)
    monkeypatch.setattr(module._Calibration, "_head", lambda self, x, y: seen.append((x, y)))
    chosen = calibrated(
        model, replace(Recipe.mixed("m", CHANNELS, {"*.down.*": "dynamic_int8"}), method=Method("gptq", migrate=True)), scratch
    )
    text = random_text(model.config, 40)
    stored = {name: module._as_stored(name, source, chosen.recipe) for name, source in chosen.sources.items()}
    with torch.inference_mode():
        for sources, found in zip((sources_of(model), stored), seen[0], strict=True):
            stream = ModelStream(model.config, sources, TOKENS)
            x = stream.embed(text.tokens)
            for layer in range(len(model.config.blocks)):
                x = stream.run(stream.block(layer), x)
            assert float((found - x)[text.valid].abs().max()) < 1e-4 * float(x.abs().max())


def test_activations_are_rounded_as_the_runtime_does_it() -> None:
    x = torch.randn(5, 7, 16, generator=torch.Generator().manual_seed(0))
    x[0], x[1, 0] = x[0].abs(), 0
    found = module._int8_rows(x)
    for row, got in zip(x.reshape(-1, 16), found.reshape(-1, 16), strict=True):
        affine = ActivationRange(float(row.min()), float(row.max())).affine()
        expected = ((row / affine.scale).round() + affine.zero_point).clamp(-128, 127).sub(affine.zero_point) * affine.scale
        assert torch.allclose(got, expected, atol=1.01 * affine.scale)
        assert int((got - expected).abs().gt(1e-5).sum()) <= 1  # a tie


@pytest.mark.parametrize("make", [tiny, mixture], ids=["dense", "mixture"])
def test_static_ranges_are_the_eager_models(make: Callable[[], Decoder], scratch: Scratch) -> None:
    model = make()
    text = random_text(model.config)
    recipe = get_recipe("static_int8")
    found = calibrate_checkpoint(model.config, sources_of(model), recipe, scratch, text=other_padding(text)).recipe.activations
    positions = torch.arange(TOKENS, dtype=torch.int32)
    samples = [(row[None, :length], positions[:length]) for row, length in zip(text.tokens, text.lengths.tolist(), strict=True)]
    expected = eager.calibrate(model, samples)
    assert found.keys() == {name for name in expected if recipe.scheme_for(name).compute == "static"}
    for name, ranges in found.items():
        for side in ("input", "output"):
            got, wanted = getattr(ranges, side), getattr(expected[name], side)
            assert (got.low, got.high) == pytest.approx((wanted.low, wanted.high), rel=1e-4, abs=1e-5)


def test_ranges_that_a_recipe_has_are_its_own(scratch: Scratch) -> None:
    model = tiny()
    first = calibrated(model, get_recipe("static_int8"), scratch).recipe
    name = "blocks.0.attention.qkv.weight"
    partial = replace(first, activations={name: first.activations["blocks.1.attention.qkv.weight"]})
    again = calibrated(model, partial, scratch).recipe
    assert again.activations == {**first.activations, **partial.activations}
    assert not first.needs_text(sources_of(model))


@pytest.mark.parametrize("name", ["lm_head.weight", "embedding.weight"])
def test_tables_and_heads_have_no_static_activations(name: str, scratch: Scratch) -> None:
    model = tiny(tied=name == "embedding.weight")
    with pytest.raises(RecipeError, match=rf"{name} cannot have static activations.*give it dynamic_int8"):
        calibrated(model, Recipe.mixed("m", "static_int8", {name: "static_int8"}), scratch)


def test_what_cannot_be_rotated_is_refused(scratch: Scratch) -> None:
    with pytest.raises(RecipeError, match="tied to the embedding"):
        calibrated(tiny(tied=True), replace(BLOCKS, method=Method(rotate=True)), scratch)


class Named(InMemory):
    def origin(self, row: int) -> str:
        return f"model.safetensors: tensor t, {row}"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("rounding", ["gptq", "scale_search"])
@pytest.mark.parametrize("name", ["blocks.1.attention.qkv.weight", "lm_head.weight", "embedding.weight", "final_norm.weight"])
def test_what_is_not_finite_is_named(name: str, rounding: str, value: float, scratch: Scratch, tmp_path: Path) -> None:
    model = tiny()
    values = dict(model.named_parameters())[name].data.clone()
    values[5 if values.dim() == 2 else 0] = value
    with pytest.raises(CheckpointError, match=r"tensor t, [05] holds NaN or infinity"):
        written(calibrated(model, replace(BLOCKS, method=Method(rounding)), scratch, **{name: Named(values)}), tmp_path / "file")  # type: ignore[arg-type]
    (tmp_path / "file").unlink(missing_ok=True)


@pytest.mark.parametrize("recipe", [replace(CHANNELS, method=GPTQ), get_recipe("static_int8")], ids=["solved", "static"])
def test_weights_that_overflow_are_refused(recipe: Recipe, scratch: Scratch) -> None:
    model = tiny()
    huge = InMemory(model.blocks[0].feed_forward.gate_up.weight.data * 1e30)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.feed_forward\..* is not finite: .*overflow"):
        calibrated(model, recipe, scratch, **{"blocks.0.feed_forward.gate_up.weight": huge})


def test_a_block_scale_beyond_float16_names_its_weight(scratch: Scratch) -> None:
    model = tiny()
    huge = Named(model.blocks[0].feed_forward.gate_up.weight.data * 1e7)
    with pytest.raises(RecipeError, match=r"tensor t, 0 \(weight blocks.0.feed_forward.gate_up.weight\): .*beyond float16"):
        calibrated(model, replace(BLOCKS, method=GPTQ), scratch, **{"blocks.0.feed_forward.gate_up.weight": huge})


def test_progress_is_told(scratch: Scratch) -> None:
    model, told = tiny(), []
    text = random_text(model.config)
    calibrate_checkpoint(
        model.config, sources_of(model), replace(BLOCKS, method=GPTQ), scratch, text=text, progress=lambda *args: told.append(args)
    )
    assert told == [("calibrate", done, 3) for done in range(4)]


@pytest.mark.parametrize("method", [GPTQ, Method("gptq", migrate=True), Method(migrate=True), Method(smooth=0.5)], ids=str)
def test_one_blocks_weights_are_in_memory_at_a_time(method: Method, scratch: Scratch) -> None:
    """Every tensor that is read is watched until its memory is given back."""
    model = random_decoder(tiny_config(layers=4, dim=64, heads=8, kv_heads=4), cache_length=TOKENS)
    alive: dict[int, str] = {}
    most = 0

    class Watched(InMemory):
        name = ""

        def rows(self, start: int, stop: int) -> Tensor:
            nonlocal most
            array = self.values[start:stop].numpy().copy()
            key = id(array)
            alive[key] = self.name
            weakref.finalize(array, alive.pop, key)
            layers = {name.split(".")[1] for name in alive.values() if name.startswith("blocks.")}
            assert len(layers) <= 1, sorted(alive.values())
            most = max(most, len(layers))
            return torch.from_numpy(array)

    sources: dict[str, WeightSource] = {}
    for name, source in sources_of(model).items():
        sources[name] = Watched(source.values)  # type: ignore[attr-defined]
        object.__setattr__(sources[name], "name", name)
    calibrate_checkpoint(model.config, sources, replace(BLOCKS, method=method), scratch, text=random_text(model.config))
    assert most == 1
    assert not any(name.startswith("blocks.") for name in alive.values())
