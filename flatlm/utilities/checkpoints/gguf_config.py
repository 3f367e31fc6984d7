"""A GGUF file's metadata as the config.json that transformers would have for the model.

Every key under the architecture's prefix is read, or known to be inert, or refused: one that nobody knows may change the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flatlm.errors import ConfigError
from flatlm.utilities.checkpoints.gguf_file import GgufCheckpoint, values_of
from flatlm.utilities.checkpoints.gguf_names import ARCHITECTURES, INERT_KEYS, GgufArchitecture, Quirk

_TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
_LLAMA3_CONTEXTS = tuple(2**power for power in range(13, 21)) + tuple(2**power for power in range(12, 3, -1))
_TOLERANCE = 1e-5


def read_config(file: Path) -> dict[str, Any]:
    """What transformers' config.json would say. Raises CheckpointError for a broken file, ConfigError naming what is not understood."""
    with GgufCheckpoint.open(file) as checkpoint:
        keys = _Keys(file, checkpoint)
        architecture = ARCHITECTURES[keys.prefix]
        config: dict[str, Any] = {"model_type": architecture.model_type, "architectures": [architecture.model_class]}
        config |= {name: keys.positive(key) for key, name in architecture.keys.items()}
        keys.check_layers()
        config |= architecture.constants
        config |= {name: tensor in checkpoint.stored for name, tensor in architecture.flags.items()}
        config |= {name: keys.token(key) for key, name in _TOKENS.items()}
        config["vocab_size"] = keys.vocab_size()
        config["tie_word_embeddings"] = "output.weight" not in checkpoint.stored
        _attention(keys, architecture, config)
        for quirk in architecture.quirks:
            _QUIRKS[quirk](keys, config)
        keys.finish()
        return config


class _Keys:
    """The metadata under the architecture's prefix; knows which keys were read."""

    def __init__(self, file: Path, checkpoint: GgufCheckpoint) -> None:
        self.file, self.checkpoint = file, checkpoint
        self.prefix: str = checkpoint.metadata["general.architecture"]
        start = f"{self.prefix}."
        self._values = {key.removeprefix(start): value for key, value in checkpoint.metadata.items() if key.startswith(start)}
        self._read = set(INERT_KEYS)

    def number(self, key: str, default: float | None = None) -> Any:
        """A number, or one for each layer where all are equal. Raises ConfigError where it is absent without a default."""
        value = self.maybe(key)
        if value is None and default is None:
            raise ConfigError(f"{self.file} has no {self.prefix}.{key}: it is needed")
        return default if value is None else value

    def positive(self, key: str, default: float | None = None) -> Any:
        value = self.number(key, default)
        if value <= 0:
            raise self.wrong(key, "must be positive")
        return value

    def check_layers(self) -> None:
        """A damaged number of layers would make lists of that length."""
        found = {name.split(".")[1] for name in self.checkpoint.stored if name.startswith("blk.")}
        if self.number("block_count") != len(found):
            raise self.wrong("block_count", f"does not fit the file, which has tensors of {len(found)} layers")

    def maybe(self, key: str) -> Any:
        """A number, or None."""
        self._read.add(key)
        value = self._values.get(key)
        if isinstance(value, np.ndarray):
            if not value.size or not (value == value[0]).all():
                raise self.wrong(key, "differs by layer, which is not supported")
            value = value[0].item()
        if isinstance(value, float):
            value = float(str(np.float32(value)))  # the decimal that was meant: 1e-05, not 9.99999974e-06
            if not math.isfinite(value):
                raise self.wrong(key, "must be a number")
        elif value is not None and not isinstance(value, int):
            raise self.wrong(key, "must be a number")
        return value

    def text(self, key: str, default: str) -> str:
        self._read.add(key)
        value = self._values.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "must be text")
        return value

    def raw(self, key: str) -> Any:
        self._read.add(key)
        return self._values.get(key)

    def skip(self, *keys: str) -> None:
        self._read.update(keys)

    def token(self, key: str) -> int | None:
        value = self.checkpoint.metadata.get(f"tokenizer.ggml.{key}")
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def vocab_size(self) -> int:
        table = self.checkpoint.stored.get("token_embd.weight")
        if table is None:
            raise ConfigError(f"{self.file} has no tensor token_embd.weight: it is needed")
        return table.shape[0]

    def table(self, tensor: str) -> list[float] | None:
        """The values of a small tensor, such as one of ROPE_TENSORS, or None."""
        found = self.checkpoint.stored.get(tensor)
        if found is None:
            return None
        if found.kind != "F32" or len(found.shape) != 1 or found.shape[0] > 4096:
            raise ConfigError(f"{self.file}: tensor {tensor} is {found.kind} {list(found.shape)}, not a short table of F32")
        return [float(str(np.float32(value))) for value in values_of(found).tolist()]

    def wrong(self, key: str, what: str) -> ConfigError:
        return ConfigError(f"{self.file}: {self.prefix}.{key} = {str(self._values.get(key))[:80]} {what}")

    def finish(self) -> None:
        """Raises ConfigError for keys that nobody read."""
        unread = sorted(key for key in self._values if key not in self._read)
        if unread:
            listed = ", ".join(f"{self.prefix}.{key} = {str(self._values[key])[:60]}" for key in unread)
            raise ConfigError(
                f"{self.file} has metadata that FlatLM does not know and that may change the model's numbers: {listed}; "
                "use the model's safetensors files"
            )


def _attention(keys: _Keys, architecture: GgufArchitecture, config: dict[str, Any]) -> None:
    heads = keys.positive("attention.head_count")
    kv_heads = keys.positive("attention.head_count_kv", heads)
    width = keys.positive("embedding_length")
    head_dim = keys.positive("attention.key_length", width // heads)
    for key in ("attention.value_length", *(("rope.dimension_count",) if architecture.head_dim != "partial" else ())):
        if keys.number(key, head_dim) != head_dim:
            raise keys.wrong(key, f"differs from the {head_dim} of a head of the keys, which is not supported")
    if architecture.head_dim == "key":
        config["head_dim"] = head_dim
    elif head_dim * heads != width:
        raise keys.wrong(
            "attention.key_length", f"is not the width {width} divided by {heads} heads: {architecture.model_type} has no other"
        )
    if keys.number("attention.causal", True) not in (True, 1):
        raise keys.wrong("attention.causal", "is not supported: every token sees those before it only")
    name, kv_name = architecture.heads
    config[name] = heads
    if kv_name is not None:
        config[kv_name] = kv_heads
    elif kv_heads != heads:
        raise keys.wrong("attention.head_count_kv", f"is not the number of heads: {architecture.model_type} has no other")
    if architecture.head_dim == "partial":
        config["partial_rotary_factor"] = keys.positive("rope.dimension_count", head_dim) / head_dim
    if architecture.rotary:
        config["rope_theta"] = keys.positive("rope.freq_base", 10000.0)
        if scaling := _rope_scaling(keys, config, head_dim):
            config["rope_scaling"] = scaling


def _rope_scaling(keys: _Keys, config: dict[str, Any], head_dim: int) -> dict[str, Any] | None:
    kind = keys.text("rope.scaling.type", "none")
    factor, original = keys.maybe("rope.scaling.factor"), keys.maybe("rope.scaling.original_context_length")
    if (factors := keys.table("rope_freqs.weight")) is not None:
        return _llama3_scaling(keys, factors, config["rope_theta"], head_dim)
    short, long = keys.table("rope_factors_short.weight"), keys.table("rope_factors_long.weight")
    if short is not None and long is not None:
        return _long_rope(keys, config, short, long, original)
    if kind == "linear" or (kind == "none" and factor not in (None, 0, 1)):
        return {"rope_type": "linear", "factor": float(factor or 1)}
    if kind == "yarn":
        scaling = {"rope_type": "yarn", "factor": float(factor or 1), "original_max_position_embeddings": original}
        if original is None:
            raise keys.wrong("rope.scaling.original_context_length", "is needed for yarn")
        return scaling
    if kind != "none":
        raise keys.wrong("rope.scaling.type", "is not supported here; none, linear, yarn and Llama 3's table are")
    keys.skip("rope.scaling.attn_factor")
    return None


def _llama3_scaling(keys: _Keys, factors: list[float], theta: float, head_dim: int) -> dict[str, Any] | None:
    """Llama 3's rule, of which the file has only the outcome: what each frequency is divided by (1 to `factor`)."""
    if all(abs(value - 1) < _TOLERANCE for value in factors):
        return None
    found = torch.tensor(factors, dtype=torch.float64)
    if len(factors) * 2 == head_dim:
        for context in _LLAMA3_CONTEXTS:
            if torch.allclose(llama3_factors(found.max().item(), context, theta, head_dim), found, rtol=_TOLERANCE):
                rule = {"factor": found.max().item(), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
                return {"rope_type": "llama3", **rule, "original_max_position_embeddings": context}
    raise ConfigError(
        f"{keys.file}: tensor rope_freqs.weight holds factors of the rotary frequencies that do not follow Llama 3's rule "
        "(low_freq_factor 1, high_freq_factor 4); use the model's safetensors files"
    )


def llama3_factors(factor: float, context: int, theta: float, head_dim: int) -> torch.Tensor:
    """What Llama 3.1's rule divides each rotary frequency by: waves longer than the context by `factor`, those of a quarter by 1."""
    waves = 2 * math.pi * theta ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    share = ((context / waves - 1.0) / 3.0).clamp(0, 1)
    return 1 / ((1 - share) / factor + share)


def _long_rope(keys: _Keys, config: dict[str, Any], short: list[float], long: list[float], original: int | None) -> dict[str, Any] | None:
    """Phi-3's two tables. llama.cpp's factor of the attention must be the one that transformers computes."""
    longest = config["max_position_embeddings"]
    original = original or longest
    if original < 2:
        raise keys.wrong("rope.scaling.original_context_length", "must be at least 2")
    scale = longest / original
    implied = 1.0 if scale <= 1 else math.sqrt(1 + math.log(scale) / math.log(original))
    attention_factor = keys.number("rope.scaling.attn_factor", implied)
    scaling: dict[str, Any] = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
    if abs(attention_factor - implied) > 1e-4:
        scaling["attention_factor"] = attention_factor
    config["original_max_position_embeddings"] = original
    return scaling


def _gemma2(keys: _Keys, config: dict[str, Any]) -> None:
    config["attn_logit_softcapping"] = keys.number("attn_logit_softcapping", 50.0)
    config["final_logit_softcapping"] = keys.number("final_logit_softcapping", 30.0)
    config["sliding_window"] = keys.number("attention.sliding_window", 4096)
    _gemma_scale(keys, config, largest=46)
    _windows(keys, config, every=2)


def _gemma3(keys: _Keys, config: dict[str, Any]) -> None:
    keys.skip("mm.tokens_per_image")
    config["final_logit_softcapping"] = keys.maybe("final_logit_softcapping")
    config["sliding_window"] = keys.number("attention.sliding_window")
    config["rope_local_base_freq"] = keys.number("rope.freq_base_swa", 10000.0)
    _gemma_scale(keys, config, largest=62)
    _windows(keys, config, every=6)


def _gemma_scale(keys: _Keys, config: dict[str, Any], largest: int) -> None:
    """Scores are divided by the root of a head's width; only the 27B models (known by their layers) take width / heads for it."""
    scale = keys.maybe("attention.scale")
    by_heads = config["num_hidden_layers"] == largest
    implied = config["hidden_size"] / config["num_attention_heads"] if by_heads else config["head_dim"]
    value = 1 / scale**2 if scale else implied
    config["query_pre_attn_scalar"] = round(value) if abs(value - round(value)) < 1e-3 else value


def _windows(keys: _Keys, config: dict[str, Any], every: int) -> None:
    """Every so many-th layer sees all; the file may say it by a number or layer by layer."""
    pattern = keys.raw("attention.sliding_window_pattern")
    layers = config["num_hidden_layers"]
    if isinstance(pattern, np.ndarray):
        if len(pattern) != layers:
            raise keys.wrong("attention.sliding_window_pattern", f"is not of {layers} layers")
        local = [bool(value) for value in pattern]
    else:
        every = pattern if isinstance(pattern, int) and pattern > 0 else every
        local = [bool((layer + 1) % every) for layer in range(layers)]
    config["layer_types"] = ["sliding_attention" if sees_less else "full_attention" for sees_less in local]


def _falcon(keys: _Keys, config: dict[str, Any]) -> None:
    """Falcon 7B has one key head and one norm; the newer design has groups, and one norm or two."""
    two_norms = "blk.0.attn_norm_2.weight" in keys.checkpoint.stored
    newer = two_norms or config["num_kv_heads"] not in (1, config["num_attention_heads"])
    config |= {"new_decoder_architecture": newer, "multi_query": config["num_kv_heads"] == 1}
    if newer:
        config["num_ln_in_parallel_attn"] = 2 if two_norms else 1


def _phi3(keys: _Keys, config: dict[str, Any]) -> None:
    window = keys.maybe("attention.sliding_window")
    config["sliding_window"] = window or None
    config.setdefault("original_max_position_embeddings", keys.number("rope.scaling.original_context_length", 0) or None)
    if config["original_max_position_embeddings"] is None:
        config["original_max_position_embeddings"] = config["max_position_embeddings"]


def _stablelm(keys: _Keys, config: dict[str, Any]) -> None:
    keys.skip("use_parallel_residual")
    config["use_parallel_residual"] = "blk.0.ffn_norm.weight" not in keys.checkpoint.stored


_QUIRKS: Mapping[Quirk, Callable[[_Keys, dict[str, Any]], None]] = {
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "falcon": _falcon,
    "phi3": _phi3,
    "stablelm": _stablelm,
}
