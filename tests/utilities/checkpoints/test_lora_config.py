"""What an adapter's configuration may say; each key that it may not is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.utilities.checkpoints.adapters import ATTENTION, edit, opened, refusal


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"layer_replication": [[0, 2], [1, 3]]},
            "FlatLM does not merge an adapter with layer_replication = [[0, 2], [1, 3]]; supported",
        ),
        ({"use_qalora": True}, "use_qalora = true; supported are"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
        ({"kasa_config": {"x": 1}}, "kasa_config"),
        ({"arrow_config": {"x": 1}}, "arrow_config"),
        ({"use_bdlora": {"x": 1}}, "use_bdlora"),
        ({"monteclora_config": {"x": 1}}, "monteclora_config"),
        ({"a_key_of_tomorrow": 0.5}, "a_key_of_tomorrow = 0.5; supported are r, lora_alpha"),
        ({"peft_type": "IA3"}, 'peft_type = "IA3" is not supported, only LORA is'),
        ({"peft_type": None}, "peft_type = null is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the base's weights before training; save the adapter with path_initial_model"),
        ({"bias": "some"}, 'bias = "some" is not one of none, all, lora_only'),
        ({"r": "4"}, 'r = "4" is not a int'),
        ({"r": 0}, "rank_pattern gives 0"),
        ({"use_dora": 1}, "use_dora = 1 is not a bool"),
        ({"lora_alpha": True}, "lora_alpha = true is not a int or float"),
        ({"rank_pattern": {"q_proj": "x"}}, 'rank_pattern gives "x" for model.layers.0.self_attn.q_proj'),
        ({"alpha_pattern": {"(": 2}}, "alpha_pattern has '(', which is no regular expression"),
        ({"rank_pattern": {"q_proj": 5}}, "has shape [4, 64], but adapter_config.json gives model.layers.0.self_attn.q_proj rank 5"),
        ({"r": 8}, "rank 8; use files of one adapter"),
        ({"target_modules": [*ATTENTION, "up_proj"]}, "has no tensors for model.layers.0.mlp.up_proj, model.layers.1.mlp.up_proj"),
        ({"modules_to_save": ["lm_head"]}, "has no lm_head.weight, though adapter_config.json names lm_head in modules_to_save"),
        ({"use_dora": True}, "has no lora_magnitude_vector beside it, which use_dora asks for"),
        ({"lora_bias": True}, "has no lora_B.bias beside it, which lora_bias asks for"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_the_configuration_may_not_say(original: Path, adapter: Path, changes: dict[str, Any], complaint: str) -> None:
    edit(adapter, **changes)
    assert complaint in refusal(original / "base", adapter)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_replication": []},
        {"task_type": "CAUSAL_LM", "base_model_name_or_path": "/nowhere", "lora_dropout": 0.3, "megatron_core": "x", "revision": "main"},
        {"target_modules": [*ATTENTION, "nothing_such"]},
        {"target_modules": ".*_proj"},
        {"modules_to_save": ["nothing_such"]},
        {"a_key_of_tomorrow": None, "another": False},
    ],
)
def test_what_the_configuration_may_say(original: Path, adapter: Path, changes: dict[str, Any]) -> None:
    edit(adapter, **changes)
    opened(original / "base", adapter).close()
