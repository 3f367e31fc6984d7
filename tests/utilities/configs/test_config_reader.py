"""Configurations with attributes: what was read, and what config.json leaves out."""

import pickle
from typing import Any

import pytest

from flatlm.utilities.configs.config_reader import ConfigReader


def test_attributes_count_as_read() -> None:
    reader = ConfigReader({"hidden_size": 8, "depth": 3, "moe": {"experts": 4, "inner": {"k": 1}}}, "config.json")
    assert (reader.hidden_size, reader.moe["experts"], reader.moe.inner.k) == (8, 4, 1)
    assert reader.unread() == "depth = 3"
    assert getattr(reader, "depths", 7) == 7
    with pytest.raises(AttributeError, match=r"config.json has no depths: getattr\(config, 'depths', default\)"):
        reader.depths  # noqa: B018
    with pytest.raises(AttributeError, match="there is no k among experts, inner"):
        reader.moe.k  # noqa: B018
    assert getattr(pickle.loads(pickle.dumps(reader)), "depth") == 3  # noqa: B009


def test_what_config_json_leaves_out_is_what_transformers_makes_of_it() -> None:
    values = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
    reader = ConfigReader(values, "config.json")
    assert (reader.mlp_bias, reader.pad_token_id, reader.head_dim) == (False, None, 16)
    assert reader.filled_in() == {"mlp_bias": False, "pad_token_id": None, "head_dim": 16}
    assert not hasattr(ConfigReader({**values, "model_type": "unheard"}, "config.json"), "mlp_bias")


@pytest.mark.parametrize(
    ("rope", "theta", "scaling", "left"),
    [
        ({"rope_type": "default", "rope_theta": 5.0}, 5.0, None, ""),
        ({"rope_type": "linear", "rope_theta": 5.0, "factor": 2.0}, 5.0, {"rope_type": "linear", "factor": 2.0}, "rope_parameters"),
    ],
)
def test_older_names_of_rope(rope: dict[str, Any], theta: float, scaling: Any, left: str) -> None:
    """A scaling that was not asked for counts as unread."""
    reader = ConfigReader({"rope_parameters": rope}, "config.json")
    assert reader.rope_theta == theta
    assert left in reader.unread() and bool(left) == bool(reader.unread())
    assert reader.rope_scaling == scaling
    assert reader.unread() == ""
