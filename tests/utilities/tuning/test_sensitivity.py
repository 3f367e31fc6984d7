"""Sensitivities are what the whole eager model says when one unit's weights alone are replaced."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from flatlm.convert.in_memory import InMemory
from flatlm.errors import RecipeError
from flatlm.layers.config import FeedForwardConfig, MixtureConfig
from flatlm.layers.kv_cache import CacheGeometry, empty_caches
from flatlm.quantize.encode import decode, encode
from flatlm.quantize.recipes import get_recipe
from flatlm.quantize.schemes import get_scheme
from flatlm.utilities.calibration.text import CalibrationText
from flatlm.utilities.tuning import sensitivity
from flatlm.utilities.tuning.keyed_file import KeyedFile
from flatlm.utilities.tuning.sensitivity import Sensitivity
from flatlm.utilities.tuning.units import Unit, possible, recipe_of, size, stored_bytes, units
from tests.models import random_decoder, tiny_config

ROW = 24
INT8 = ("dynamic_int8",)


def text(vocab: int, rows: int = 5) -> CalibrationText:
    torch.manual_seed(0)
    lengths = torch.tensor([ROW, ROW, 9, ROW, 17][:rows])
    return CalibrationText(torch.randint(0, vocab, (rows, ROW), dtype=torch.int32), lengths)


def model(**config):
    return random_decoder(tiny_config(**config), cache_length=ROW)


def measure(decoder, path, schemes=INT8, progress=None, rows=5):
    sources = {name: InMemory(value.data) for name, value in decoder.named_parameters()}
    file = KeyedFile(path, {"schemes": list(schemes)}, "kl")
    return Sensitivity(decoder.config, sources, text(decoder.config.vocab_size, rows), schemes, file, progress)


@torch.inference_mode()
def logits(decoder, tokens):
    geometry = CacheGeometry(ROW)
    return decoder(tokens, torch.arange(ROW, dtype=torch.int32), empty_caches(decoder.config, geometry, batch=len(tokens)))[0]


def kl_of_whole_model(decoder, unit: Unit, calibration: CalibrationText) -> float:
    changed = copy.deepcopy(decoder)
    parameters = dict(changed.named_parameters())
    for name in unit.weights:
        weight, scheme = parameters[name].data, get_scheme("dynamic_int8")
        parameters[name].data = decode(encode(weight, scheme), scheme, weight.shape)
    p, q = (torch.log_softmax(logits(m, calibration.tokens)[calibration.valid].double(), -1) for m in (decoder, changed))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize("config", [{}, {"tied": True}, {"bias": True, "plain": True}, {"window": 8}], ids=str)
def test_each_is_that_of_the_whole_model(config, tmp_path):
    decoder = model(**config)
    costs = measure(decoder, tmp_path / "s.json").measure()
    found = list(units(decoder.config))
    assert set(costs) == {unit.pattern for unit in found}
    for unit in found:
        expected = kl_of_whole_model(decoder, unit, text(decoder.config.vocab_size))
        assert expected > 1e-9
        assert costs[unit.pattern]["dynamic_int8"] == pytest.approx(expected, rel=0.02, abs=2e-9), unit.pattern


def test_fewer_bits_cost_more(tmp_path):
    decoder = model(dim=64)
    costs = measure(decoder, tmp_path / "s.json", ("dynamic_int8", "dynamic_int4_block32", "dynamic_int4_channel")).measure()
    for pattern, by_scheme in costs.items():
        assert by_scheme["dynamic_int8"] * 5 < by_scheme["dynamic_int4_block32"], pattern


def test_an_interrupted_measurement_goes_on_where_it_was(tmp_path, monkeypatch):
    decoder, path = model(layers=3), tmp_path / "s.json"
    whole = measure(decoder, tmp_path / "whole.json").measure()

    def stop(stage, done, total):
        if done > total * 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(decoder, path, progress=stop).measure()
    kept = json.loads(path.read_text())["kl"]
    assert 0 < len(kept) < len(whole)
    asked = []
    real = sensitivity.quantized
    monkeypatch.setattr(sensitivity, "quantized", lambda weight, *more: asked.append(weight.shape) or real(weight, *more))
    ticks = []
    again = measure(decoder, path, progress=lambda stage, done, total: ticks.append((done, total))).measure()
    assert again.keys() == whole.keys() and all(again[p] == pytest.approx(whole[p]) for p in whole)
    assert len(asked) == len(whole) - len(kept)
    assert ticks[-1][0] == ticks[-1][1], "the bar ends at its end"


def test_experts_are_one_unit_for_each_projection(tmp_path):
    config = tiny_config()
    mixture = MixtureConfig(num_experts=4, experts_per_token=2, expert=FeedForwardConfig(16))
    config = replace(config, blocks=tuple(replace(block, feed_forward=mixture) for block in config.blocks))
    decoder = random_decoder(config, cache_length=ROW)
    found = {unit.pattern: unit for unit in units(config)}
    assert len(found["blocks.1.feed_forward.experts.*.down.weight"].weights) == 4
    costs = measure(decoder, tmp_path / "s.json", rows=3).measure()
    unit = found["blocks.0.feed_forward.experts.*.gate_up.weight"]
    assert costs[unit.pattern]["dynamic_int8"] == pytest.approx(kl_of_whole_model(decoder, unit, text(config.vocab_size, 3)), rel=0.02)
    recipe = recipe_of(dict.fromkeys(found, "dynamic_int4_channel"))
    recipe.require_matches([name for name, _ in decoder.named_parameters()])
    assert recipe.scheme_for("blocks.1.feed_forward.router.weight").name == "dynamic_int8"
    assert recipe.scheme_for("blocks.1.feed_forward.experts.3.down.weight").name == "dynamic_int4_channel"


@pytest.mark.parametrize("scheme", ["dynamic_int4_block32", "dynamic_int4_channel"])
def test_a_recipe_of_one_scheme_is_held_to_what_the_built_in_one_is(scheme):
    uniform, built_in = recipe_of({"embedding.weight": scheme}), get_recipe(scheme.replace("dynamic", "calibrated"))
    assert (uniform.bound, uniform.warning, uniform.method) == (built_in.bound, built_in.warning, built_in.method)


def test_sizes_are_those_of_the_file():
    sources = {"blocks.0.attention.output.weight": InMemory(torch.zeros(64, 32))}
    unit = Unit("blocks.0.attention.output.weight", 0, tuple(sources))
    assert size(unit, "dynamic_int8", sources) == 64 * 32 + 64 * 12
    assert size(unit, "dynamic_int4_block32", sources) == 64 * 16 + 64 * 2
    assert stored_bytes(get_scheme("float16"), (64, 32)) == 64 * 32 * 2
    assert unit.projections == ("attention.output",)


def test_schemes_that_do_not_fit_are_left_out_and_none_is_an_error():
    sources = {"blocks.0.attention.output.weight": InMemory(torch.zeros(64, 20))}
    unit = Unit("blocks.0.attention.output.weight", 0, tuple(sources))
    assert possible(unit, ("dynamic_int8", "dynamic_int4_block32"), sources) == ["dynamic_int8"]
    with pytest.raises(RecipeError, match=r"none of dynamic_int4_block32 fits blocks.0.attention.output.weight of shape \[64, 20\]"):
        possible(unit, ("dynamic_int4_block32",), sources)
    with pytest.raises(RecipeError, match="did you mean 'dynamic_int8'"):
        possible(unit, ("dynamic_int",), sources)
