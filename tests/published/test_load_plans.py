"""Published checkpoints, at full size and without weights: their config.json is understood, and the plan of their tensors is total."""

import math

import pytest

from flatlm.convert.weights import WeightLayout
from flatlm.errors import CheckpointError, RecipeError
from flatlm.quantize.recipes import RECIPES
from tools.published_models import (
    LONG_CACHE,
    PublishedModel,
    cache_bytes,
    load_published_models,
    plan_model,
    published_plan,
)
from tools.published_tensors import OTHER_TOWERS, Shapes, hub_forms, old_buffers
from tools.update_models_page import PAGE, page

PUBLISHED = load_published_models()
BY_NAME = {model.name: model for model in PUBLISHED}


def numbers(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.parametrize("model", PUBLISHED, ids=str)
def test_the_config_is_the_published_models(model: PublishedModel) -> None:
    """The reference, made by this config.json, has as many parameters as were published: a wrong number would show."""
    buffers = old_buffers(model.config)
    forms = hub_forms(model.config)
    counted = forms["tied_head_stored" if model.tied_head_stored else "published"]
    assert model.agrees(numbers({name: shape for name, shape in counted.items() if name not in buffers}))


@pytest.mark.parametrize("model", PUBLISHED, ids=str)
def test_the_plan_is_total(model: PublishedModel) -> None:
    for form, shapes in hub_forms(model.config).items():
        plan = published_plan(model) if form == "published" else plan_model(model, shapes)
        used = {name: shape for name, shape in shapes.items() if name not in plan.weights.ignored}
        assert plan.weights.parameters() == numbers(used), form
        # What is left out is the tied head's copy, masks, and towers for other than text: nothing that the text's numbers depend on.
        text = {name: shape for name, shape in shapes.items() if not name.startswith(OTHER_TOWERS)}
        left_out = [name for name in plan.weights.ignored if name in text and not name.endswith("lm_head.weight")]
        assert len(left_out) == len(old_buffers(model.config)), form
        assert plan.shape.cache_bytes == cache_bytes(plan)


@pytest.mark.parametrize("model", PUBLISHED, ids=str)
def test_sizes_follow_from_the_recipe(model: PublishedModel) -> None:
    plan = published_plan(model)
    matrices = sum(math.prod(weight.shape) for weight in plan.weights.weights.values() if len(weight.shape) == 2)
    sizes = {}
    for name in ("fp16", "dynamic_int8", "dynamic_int4_block32"):
        try:
            sizes[name] = WeightLayout(plan.weights.weights, RECIPES[name]).size
        except RecipeError:
            assert name == "dynamic_int4_block32"
    assert sizes["fp16"] == pytest.approx(2 * matrices, rel=0.02)
    assert sizes["dynamic_int8"] == pytest.approx(matrices, rel=0.02)
    if "dynamic_int4_block32" in sizes:
        assert matrices / 2 < sizes["dynamic_int4_block32"] < sizes["dynamic_int8"]


def test_a_missing_or_an_unknown_tensor_is_seen() -> None:
    model = BY_NAME["meta-llama/Llama-3.2-1B"]
    shapes = dict(hub_forms(model.config)["published"])
    lost = shapes.pop("model.layers.15.mlp.up_proj.weight")
    with pytest.raises(CheckpointError, match=r"layers.15.mlp.up_proj.weight .* is missing"):
        plan_model(model, shapes)
    with pytest.raises(CheckpointError, match=r"layers.16.mlp.up_proj.weight .* is not used"):
        plan_model(model, shapes | {f"model.layers.{layer}.mlp.up_proj.weight": lost for layer in (15, 16)})


@pytest.mark.parametrize(
    ("name", "windowed", "layers", "ring"),
    [
        ("mistralai/Mistral-7B-v0.1", 32, 32, 4224),  # 4096 + 128 - 1, rounded up
        ("google/gemma-2-2b", 13, 26, 4224),
        ("google/gemma-3-1b-pt", 22, 26, 640),
    ],
)
def test_rings_are_as_long_as_the_window(name: str, windowed: int, layers: int, ring: int) -> None:
    model = BY_NAME[name]
    plan = published_plan(model)
    full, short = cache_bytes(plan, LONG_CACHE, rings=False), cache_bytes(plan, LONG_CACHE)
    assert short * layers * LONG_CACHE == full * (windowed * ring + (layers - windowed) * LONG_CACHE)


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == page(), "run python -m tools.update_models_page"
