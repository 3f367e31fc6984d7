"""OpenELM against its own reference, eager and exported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flatlm.errors import ConfigError
from flatlm.examples.openelm import make_divisible
from flatlm.generative.verify import verify
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.configs.registry import build_config
from flatlm.utilities.example import build_model
from flatlm.utilities.exporter import ExportRequest, export
from tests.examples.openelm_reference import CONFIG, forward, make_checkpoint
from tests.examples.test_parity import TOLERANCE, logits_in_steps

CASES = {
    "plain": {},
    "plain_queries_and_keys": {"normalize_qk_projections": False},
    "plain_feed_forward": {"ffn_with_glu": False},
    "own_head": {"share_input_output_layers": False},
    "rope_base": {"rope_freq_constant": 500.0},
    "gelu": {"activation_fn_name": "gelu"},
    "no_groups": {"num_kv_heads": [2, 4, 6]},
    "wide_heads": {"head_dim": 32},
    "coarse_divisor": {"ffn_dim_divisor": 64},
}


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
@torch.inference_mode()
def test_eager_logits_are_the_references(values: dict[str, Any], tmp_path: Path) -> None:
    config = {**CONFIG, **values}
    weights = make_checkpoint(config, tmp_path)
    model = build_model(tmp_path, kv_cache_max_len=48)
    ids = torch.randint(0, 128, (1, 40), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    expected = forward(config, weights, ids[0].long())
    assert float(expected.std()) > 0.1
    for steps in ([40], [1] * 40, [17, 1, 1, 21]):
        assert float((logits_in_steps(model, ids, steps) - expected).abs().max()) <= TOLERANCE


@pytest.mark.slow
def test_exported_file_is_the_eager_model(tmp_path: Path) -> None:
    make_checkpoint(CONFIG, tmp_path / "checkpoint")
    output = tmp_path / "model.tflite"
    export(ExportRequest(tmp_path / "checkpoint", output, recipe=get_recipe("none"), prefill_lengths=(4, 16), kv_cache_len=48))
    report = verify(output, tmp_path / "checkpoint", tokens=160)  # transformers has no class for it
    assert report.against == "eager"
    assert report.max_abs_error <= TOLERANCE, report
    assert report.greedy_tokens_equal == report.greedy_tokens == 32
    assert report.passed


def test_the_published_widths_of_openelm_270m() -> None:
    multipliers = [0.5, 0.73, 0.97, 1.2, 1.43, 1.67, 1.9, 2.13, 2.37, 2.6, 2.83, 3.07, 3.3, 3.53, 3.77, 4.0]
    widths = [make_divisible(multiplier * 1280, 256) for multiplier in multipliers]
    assert widths == [768, 1024, 1280, 1536, 1792, 2048, 2560, 2816, 3072, 3328, 3584, 3840, 4352, 4608, 4864, 5120]


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"num_query_heads": [2, 4]}, "num_query_heads"),
        ({"num_kv_heads": [2, 3, 4]}, "num_kv_heads"),
        ({"ffn_multipliers": [0.5, 4.0]}, "ffn_multipliers"),
        ({"normalization_layer_name": "layer_norm"}, "normalization_layer_name"),
        ({"head_dim": 15}, "head_dim"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(values: dict[str, Any], key: str, tmp_path: Path) -> None:
    make_checkpoint(CONFIG, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **values}))
    with pytest.raises(ConfigError, match=key):
        build_config(tmp_path)
