"""What an adapter's adapter_config.json says of the numbers; what it says that FlatLM does not merge is refused by name."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatlm.errors import CheckpointError
from flatlm.utilities.json_file import read_json

_READ = frozenset(
    """
    alpha_pattern bias ensure_weight_tying exclude_modules fan_in_fan_out init_lora_weights layers_to_transform lora_alpha lora_bias
    modules_to_save peft_type r rank_pattern target_modules use_dora use_rslora
    """.split()  # noqa: SIM905 - a table that reads better as words
)
_INERT = frozenset(
    """
    auto_mapping base_model_name_or_path corda_config eva_config inference_mode layers_pattern loftq_config lora_dropout lora_ga_config
    megatron_config megatron_core peft_version qalora_group_size revision runtime_config task_type velora_config
    """.split()  # noqa: SIM905
)
"""Keys of training, of bookkeeping, and settings of what init_lora_weights or use_qalora turn on."""
SUPPORTED = (
    "supported are r, lora_alpha, use_rslora, rank_pattern, alpha_pattern, fan_in_fan_out, bias, use_dora, lora_bias and "
    "modules_to_save. Merge it with PEFT (merge_and_unload, then save_pretrained) and export the result"
)
_NEUTRAL_STARTS = (True, False, None, "true", "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base's weights as they are."""


@dataclass(frozen=True)
class AdapterSettings:
    """What adapter_config.json says of the numbers."""

    source: Path
    rank: int
    alpha: float
    ranks: Mapping[str, Any]
    alphas: Mapping[str, Any]
    rslora: bool
    dora: bool
    transposed: bool
    lora_bias: bool
    tied: bool
    targets: tuple[str, ...]
    saved: tuple[str, ...]
    every_layer: bool

    @classmethod
    def read(cls, path: Path) -> AdapterSettings:
        values = read_json(path, CheckpointError, way_out="; save the adapter again")

        def choose(key: str, default: Any, *types: type) -> Any:
            value = values.get(key)
            if value is None:
                return default
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                raise CheckpointError(f"{path}: {key} = {json.dumps(value)[:60]} is not a {' or '.join(t.__name__ for t in types)}")
            return value

        if (kind := values.get("peft_type")) != "LORA":
            raise CheckpointError(f"{path}: peft_type = {json.dumps(kind)} is not supported, only LORA is; {SUPPORTED}")
        unknown = sorted(key for key, value in values.items() if key not in _READ | _INERT and value)
        if unknown:
            listed = ", ".join(f"{key} = {json.dumps(values[key])[:60]}" for key in unknown)
            raise CheckpointError(f"{path}: FlatLM does not merge an adapter with {listed}; {SUPPORTED}")
        if (start := values.get("init_lora_weights", True)) not in _NEUTRAL_STARTS:
            raise CheckpointError(
                f"{path}: init_lora_weights = {json.dumps(start)} changed the base's weights before training; save the adapter with "
                "path_initial_model_for_weight_conversion, or merge it with PEFT (merge_and_unload) and export the result"
            )
        if (bias := choose("bias", "none", str)) not in ("none", "all", "lora_only"):
            raise CheckpointError(f"{path}: bias = {json.dumps(bias)} is not one of none, all, lora_only")
        targets, layers = values.get("target_modules"), values.get("layers_to_transform")
        return cls(
            path,
            choose("r", 8, int),
            choose("lora_alpha", 8, int, float),
            choose("rank_pattern", {}, dict),
            choose("alpha_pattern", {}, dict),
            choose("use_rslora", False, bool),
            choose("use_dora", False, bool),
            choose("fan_in_fan_out", False, bool),
            choose("lora_bias", False, bool),
            choose("ensure_weight_tying", False, bool),
            tuple(t for t in targets if isinstance(t, str)) if isinstance(targets, list) else (),
            tuple(t for t in choose("modules_to_save", [], list) if isinstance(t, str)),
            layers in (None, []) and not values.get("exclude_modules"),
        )

    def rank_of(self, module: str) -> int:
        return int(self._number("rank_pattern", self.ranks, module, self.rank))

    def scale_of(self, module: str) -> float:
        rank = self.rank_of(module)
        return float(self._number("alpha_pattern", self.alphas, module, self.alpha)) / (math.sqrt(rank) if self.rslora else rank)

    def _number(self, key: str, patterns: Mapping[str, Any], module: str, default: float) -> float:
        """Of the first pattern that is the module's whole name, or its end after a dot."""
        value: Any = default
        for pattern, number in patterns.items():
            try:
                found = re.match(rf"(.*\.)?({pattern})$", module)
            except re.error as error:
                raise CheckpointError(f"{self.source}: {key} has {pattern!r}, which is no regular expression ({error})") from error
            if found:
                value = number
                break
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or (key[0] == "r" and value < 1):
            raise CheckpointError(f"{self.source}: {key} gives {json.dumps(value)[:60]} for {module}, which is not a positive number")
        return value
