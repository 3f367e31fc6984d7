"""The export: configuration and weights planned, graphs compiled and stamped, weights linked, the file proved, and only then named.

Everything that can be wrong with the input is found before the converter is even imported. How the file is proved is the caller's
affair (`prove`), since what runs an exported file lies above.
"""

import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flatlm import __version__
from flatlm.convert.atomic_file import atomic_output
from flatlm.errors import ExportError, OutputError
from flatlm.layers.config import ModelConfig
from flatlm.quantize.recipes import RECIPES, Recipe
from flatlm.utilities.checkpoint import Checkpoint
from flatlm.utilities.loader import LoadPlan, ModelLoader
from flatlm.utilities.registry import build_config

DEFAULT_CACHE_LENGTH = 1024
DEFAULT_PREFILL_LENGTHS = (16, 128)
SUFFIXES = (".tflite", ".litertlm")

Prove = Callable[[Path], Mapping[str, Any]]
"""Runs the file at a path; returns what was measured, or raises VerificationFailed."""
Progress = Callable[[str, int, int], None]
"""Called as (stage, done, in all)."""


@dataclass(frozen=True)
class ExportRequest:
    """What is to be exported, and how. None: the default that fits the model."""

    checkpoint: Path
    output: Path
    recipe: Recipe = RECIPES["dynamic_int8"]
    prefill_lengths: tuple[int, ...] | None = None
    kv_cache_len: int | None = None
    prefill_logits: bool = False
    family: str | None = None
    ignored_config_keys: tuple[str, ...] = ()
    threads: int | None = None


@dataclass(frozen=True)
class ExportPlan:
    """A request that was found possible: every weight has a source and a scheme that fits it, and the sizes are known."""

    config: ModelConfig
    family: str
    weights: LoadPlan
    recipe: Recipe
    cache_length: int
    prefill_lengths: tuple[int, ...]
    weight_bytes: int
    cache_bytes: int


@dataclass(frozen=True)
class ExportReport:
    """What was written. `verification` is what `prove` returned, or None; seconds are wall time by stage."""

    output: Path
    bytes: int
    recipe: str
    family: str
    parameters: int
    signatures: tuple[str, ...]
    kv_cache_len: int
    seconds: Mapping[str, float]
    verification: Mapping[str, Any] | None


def plan_export(checkpoint: Checkpoint, request: ExportRequest) -> ExportPlan:
    """Read the configuration, plan the weights, check lengths and recipe; reads no weights.

    Raises ConfigError, CheckpointError, RecipeError or ExportError, whichever says first what is wrong.
    """
    config, builder = build_config(request.checkpoint, family=request.family, ignored_keys=request.ignored_config_keys)
    weights = ModelLoader(checkpoint, builder.tensor_names).plan(config)
    cache_length, prefill_lengths = _lengths(request, config.max_positions)
    size = 0
    for name, weight in weights.weights.items():
        scheme = request.recipe.scheme_for(name)
        scheme.check(name, weight.shape)
        size += scheme.nbytes(weight.shape) + scheme.scales_nbytes(weight.shape)
    cache = sum(8 * cache_length * block.attention.num_kv_heads * block.attention.head_dim for block in config.blocks)
    return ExportPlan(config, builder.family, weights, request.recipe, cache_length, prefill_lengths, size, cache)


def export(request: ExportRequest, *, prove: Prove | None = None, progress: Progress | None = None) -> ExportReport:
    """Export a checkpoint to `request.output`, which appears only when the file is whole and `prove` has accepted it.

    Raises a FlatlmError for bad input, VerificationFailed from `prove`; an older file at the output's path stays as it was then.
    """
    if request.output.suffix not in SUFFIXES:
        raise OutputError(f"{request.output}: the suffix says the format; use {' or '.join(SUFFIXES)}")
    clock = _Clock(progress)
    with ExitStack() as stack:
        clock.start("plan")
        checkpoint = stack.enter_context(Checkpoint.open(request.checkpoint))
        plan = plan_export(checkpoint, request)
        finish = _bundle_finisher(request, plan) if request.output.suffix == ".litertlm" else None
        temporary = stack.enter_context(atomic_output(request.output))
        _require_space(request.output, plan)
        clock.start("compile")
        linked, signatures = _compile(plan, request)
        clock.start("weights")
        base = finish.model_offset if finish else 0
        manifest = _manifest(request, plan, checkpoint, signatures)
        handle = os.open(temporary, os.O_RDWR)
        stack.callback(os.close, handle)
        linked.write(handle, base=base, threads=request.threads, progress=progress)
        linked.write_manifest(handle, manifest, base=base)
        if finish:
            finish(temporary, linked.size, manifest)
        verification = None
        if prove is not None:
            clock.start("verify")
            verification = dict(prove(temporary))
            manifest |= {"verification": verification}
            linked.write_manifest(handle, manifest, base=base)
            if finish:
                finish.replace_manifest(temporary, manifest)
        clock.start("finish")
        size = temporary.stat().st_size
    seconds = clock.stop()
    return ExportReport(
        request.output,
        size,
        plan.recipe.name,
        plan.family,
        plan.weights.parameters(),
        signatures,
        plan.cache_length,
        seconds,
        verification,
    )


def _lengths(request: ExportRequest, max_positions: int) -> tuple[int, tuple[int, ...]]:
    cache = request.kv_cache_len or min(DEFAULT_CACHE_LENGTH, max_positions)
    if request.kv_cache_len is not None and request.kv_cache_len < 2:
        raise ExportError(f"--kv-cache-len {request.kv_cache_len}: the cache needs at least 2 slots")
    if cache > max_positions:
        raise ExportError(f"--kv-cache-len {cache} is longer than the {max_positions} positions that the model was made for")
    if request.prefill_lengths is None:
        return cache, tuple(length for length in DEFAULT_PREFILL_LENGTHS if length <= cache) or (cache,)
    lengths = tuple(sorted(set(request.prefill_lengths)))
    if not lengths or lengths[0] < 2:
        raise ExportError(f"--prefill {','.join(map(str, lengths))}: lengths are whole numbers of at least 2 (decode takes one token)")
    if lengths[-1] > cache:
        raise ExportError(f"--prefill {lengths[-1]} is longer than the cache of {cache} slots: lower it, or raise --kv-cache-len")
    return cache, lengths


def _require_space(output: Path, plan: ExportPlan) -> None:
    status = os.statvfs(output.parent)
    free = status.f_bavail * status.f_frsize
    if free < plan.weight_bytes:
        raise OutputError(
            f"{output} needs {plan.weight_bytes / 1e6:.1f} MB and {output.parent} has {free / 1e6:.1f} MB left: free some space"
        )


def _compile(plan: ExportPlan, request: ExportRequest) -> tuple[Any, tuple[str, ...]]:
    """The linked model (nothing written yet) and its signatures' names."""
    from flatlm.convert.compile import compile_pieces
    from flatlm.convert.decoder import decoder_pieces, decoder_plans, signature_specs
    from flatlm.convert.link import link
    from flatlm.convert.stamp import stamp
    from flatlm.layers.model import build_on_meta

    model = build_on_meta(plan.config, cache_length=plan.cache_length)
    specs = signature_specs(plan.prefill_lengths, prefill_logits=request.prefill_logits)
    skeleton = compile_pieces(decoder_pieces(model, specs))
    stamped = stamp(skeleton, decoder_plans(model, specs))
    return link(stamped, plan.weights.weights, plan.recipe), tuple(spec.name for spec in specs)


def _manifest(request: ExportRequest, plan: ExportPlan, checkpoint: Checkpoint, signatures: tuple[str, ...]) -> dict[str, Any]:
    packages = ("torch", "litert-torch", "ai-edge-litert", "litert-lm-builder")
    return {
        "flatlm": __version__,
        "family": plan.family,
        "recipe": request.recipe.to_dict(),
        "checkpoint": checkpoint.fingerprint(),
        "parameters": plan.weights.parameters(),
        "signatures": list(signatures),
        "kv_cache_len": plan.cache_length,
        "vocab_size": plan.config.vocab_size,
        "ignored_tensors": list(plan.weights.ignored),
        "ignored_config_keys": list(request.ignored_config_keys),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _bundle_finisher(request: ExportRequest, plan: ExportPlan) -> Any:
    from flatlm.utilities.bundling import BundleFinisher

    return BundleFinisher(request.checkpoint, plan.cache_length)


class _Clock:
    """Wall seconds by stage; tells `progress` when a stage begins."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._seconds: dict[str, float] = {}
        self._current: tuple[str, float] | None = None

    def start(self, stage: str) -> None:
        self.stop()
        self._current = (stage, time.perf_counter())
        if self._progress is not None:
            self._progress(stage, 0, 0)

    def stop(self) -> dict[str, float]:
        if self._current is not None:
            stage, since = self._current
            self._seconds[stage] = time.perf_counter() - since
            self._current = None
        return self._seconds
