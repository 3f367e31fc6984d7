"""Published encoders, at full size and without weights: their config.json is understood, and the plan of their tensors is total."""

import math

import pytest

from tools.published_encoders import PublishedEncoder, load_published_encoders, plan_encoder, stored_shapes

PUBLISHED = load_published_encoders()
LEFT_OUT = ("pooler", "seq_relationship")
"""What files hold beside their class's tensors, trained and unused."""


def numbers(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


@pytest.mark.parametrize("model", PUBLISHED, ids=str)
def test_the_config_is_the_published_models(model: PublishedEncoder) -> None:
    """The reference, made by this config.json, has as many parameters as were published: a wrong number would show."""
    assert model.agrees(numbers(dict(stored_shapes(model))))


@pytest.mark.parametrize("model", PUBLISHED, ids=str)
@pytest.mark.parametrize("task", [None, "embedding"])
def test_the_plan_is_total(model: PublishedEncoder, task: str | None) -> None:
    """Also from a file that has the position ids of older classes, and the tied decoder once more."""
    shapes = dict(stored_shapes(model))
    prefix = next(name for name in shapes if name.endswith("word_embeddings.weight")).removesuffix("word_embeddings.weight")
    plan = plan_encoder(model, shapes | {f"{prefix}position_ids": (1, 512)}, task)
    used = {name: shape for name, shape in shapes.items() if name not in plan.weights.ignored}
    assert plan.weights.parameters() == numbers(used)
    assert f"{prefix}position_ids" in plan.weights.ignored
    if task is None and model.pooling is None:
        assert all(any(part in name for part in LEFT_OUT) for name in plan.weights.ignored if not name.endswith("position_ids"))
    if model.pooling is not None:
        assert (plan.shape.facts["pooling"], plan.shape.facts["normalised"]) == (model.pooling, model.normalised)
    assert plan.shape.graph.signatures == ("encode_16", "encode_128", "encode_512")
    assert plan.config.max_positions == 512
