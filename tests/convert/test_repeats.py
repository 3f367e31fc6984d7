"""What a layer's run makes of the names in it."""

import pytest

from flatlm.convert.repeats import Run


@pytest.mark.parametrize(
    ("prefix", "layer", "name", "expected"),
    [
        ("model.layers.", 1, "model.layers.1.mlp.up.weight", "model.layers.{}.mlp.up.weight"),
        ("model.layers.", 1, "model.layers.1.experts.1.up.weight", "model.layers.{}.experts.1.up.weight"),
        ("model.layers.", 1, "model.layers.1.q.weight+model.layers.1.k1.weight", "model.layers.{}.q.weight+model.layers.{}.k1.weight"),
        ("model.layers.", 1, "model.layers.11.up.weight", "model.layers.11.up.weight"),
        ("model.layers.", 1, "other.model.layers.1.up.weight", "other.model.layers.1.up.weight"),
        ("model.layers.", None, "model.layers.1.up.weight", "model.layers.1.up.weight"),
        ("", 1, "1.up1.weight", "{}.up1.weight"),
        ("h_", 3, "h_3/up", "h_{}/up"),
    ],
)
def test_a_layers_index_is_left_open_in_its_own_names(prefix: str, layer: int | None, name: str, expected: str) -> None:
    assert Run([], prefix, layer).template(name) == expected
    assert layer is None or expected.replace("{}", str(layer)) == name
