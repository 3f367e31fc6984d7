"""The export: configuration and weights planned, graphs compiled and stamped, weights linked, the file proved, and only then named.

Everything that can be wrong with the input is found before the converter is even imported. How the file is proved is the caller's
affair (`prove`), since what runs an exported file lies above.
"""

import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flatlm import __version__
from flatlm.convert.atomic_file import atomic_output
from flatlm.convert.link import MANIFEST_CAPACITY, Root, link
from flatlm.convert.weights import WeightLayout, align
from flatlm.convert.worker import Compiler, CompilerProcess
from flatlm.errors import ExportError, OutputError, TokenizerError
from flatlm.layers.config import CacheDtype
from flatlm.progress import Progress
from flatlm.quantize.method import PLAIN
from flatlm.quantize.recipes import RECIPES, Recipe
from flatlm.utilities.bundling import BundleFinisher
from flatlm.utilities.calibration.calibrate import calibrate_checkpoint, require_possible, with_assumed_ranges
from flatlm.utilities.calibration.sources import Scratch
from flatlm.utilities.calibration.text import CalibrationText, read_text
from flatlm.utilities.checkpoints.lora import LoraStore
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.checkpoints.store import TensorStore
from flatlm.utilities.code_files import imported_beside
from flatlm.utilities.configs.crf_facts import LABELS_TOKENS, read_crf
from flatlm.utilities.configs.registry import build_config
from flatlm.utilities.digests import file_digest
from flatlm.utilities.kinds.kind import GraphPlan
from flatlm.utilities.kinds.table import kind_of
from flatlm.utilities.reading import AS_IT_SAYS, Reading
from flatlm.utilities.results import save_result
from flatlm.utilities.tokenizing.tokenizer import Tokenizer
from flatlm.utilities.weights.loader import LoadPlan, ModelLoader

SUFFIXES = (".tflite", ".litertlm")

CONCURRENT_FROM = 256 << 20
"""Bytes of weights from which they are written while the graph is compiled. Below, the few kilobytes of slack would show."""

Prove = Callable[[Path], Mapping[str, Any]]
"""Runs the file at a path; returns what was measured, or raises VerificationFailed."""


@dataclass(frozen=True)
class ExportRequest:
    """What is to be exported, and how. None: the default that fits the model."""

    checkpoint: Path
    output: Path
    recipe: Recipe = RECIPES["dynamic_int8"]
    prefill_lengths: tuple[int, ...] | None = None
    kv_cache_len: int | tuple[int, ...] | None = None
    """Of several, a text begins in the shortest that it fits, and moves on."""
    prefill_logits: bool = False
    reading: Reading = AS_IT_SAYS
    lora: Path | None = None
    """Directory of a PEFT adapter that is merged into the checkpoint."""
    calibration: Path | None = None
    """Text (.txt, .json, .jsonl) for recipes whose method needs it."""
    kv_cache_dtype: str = CacheDtype.FLOAT32
    """What the file's caches hold: a `CacheDtype`."""
    verify_length: int | None = None
    """Tokens of a draft that are checked at once, in a signature for that; None: no such signature."""


@dataclass(frozen=True)
class ExportPlan:
    """A request that was found possible: every weight has a source and a scheme that fits it, and the sizes are known."""

    config: Any
    """Its type says what kind of model it is (`kinds/table.py`)."""
    family: str
    weights: LoadPlan
    recipe: Recipe
    layout: WeightLayout
    shape: GraphPlan


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
    """The most tokens of a text, where there is no KV cache."""
    seconds: Mapping[str, float]
    verification: Mapping[str, Any] | None
    integers: str | None = None
    """What became of the weights that the checkpoint holds as integers; None where it holds none."""
    kv_cache_dtype: str = CacheDtype.FLOAT32


def plan_export(checkpoint: TensorStore, request: ExportRequest) -> ExportPlan:
    """Read the configuration, plan the weights, check lengths and recipe; reads no weights.

    Raises ConfigError, CheckpointError, RecipeError or ExportError, whichever says first what is wrong.
    """
    config, builder = build_config(request.checkpoint, request.reading)
    loader = ModelLoader(checkpoint, builder.tensor_names)
    config = loader.fit(config)
    weights = loader.plan(config)
    require_possible(config, weights.weights, request.recipe, text=request.calibration is not None)
    shape = kind_of(config).graph(config, request)
    layout = WeightLayout(weights.weights, with_assumed_ranges(request.recipe, weights.weights))
    return ExportPlan(config, builder.family, weights, request.recipe, layout, shape)


def export(
    request: ExportRequest, *, prove: Prove | None = None, progress: Progress | None = None, compiler: Compiler | None = None
) -> ExportReport:
    """Export a checkpoint to `request.output`, which appears only when the file is whole and `prove` has accepted it.

    A `compiler` that was started earlier saves the time of its imports, one that caches that of compiling; its context is left.
    Raises a FlatlmError for bad input, VerificationFailed from `prove`; an older file at the output's path stays as it was then.
    """
    require_suffix(request.output)
    clock = _Clock(progress)
    with ExitStack() as stack:
        compiler = stack.enter_context(compiler or CompilerProcess())
        clock.start("plan")
        checkpoint = stack.enter_context(open_checkpoint(request.checkpoint, lora=request.lora))
        plan = plan_export(checkpoint, request)
        text = _calibration_text(request, plan)
        compiler.submit(plan.shape.graph)
        finish = BundleFinisher(request.checkpoint, plan.shape.context) if request.output.suffix == ".litertlm" else None
        if finish and request.lora is not None:
            _require_the_same_tokenizer(request.checkpoint, request.lora)
        temporary = stack.enter_context(atomic_output(request.output))
        _require_space(request.output, plan)
        if request.recipe.method != PLAIN or text is not None:
            clock.start("calibrate")
            scratch = stack.enter_context(Scratch(request.output.parent))
            chosen = calibrate_checkpoint(plan.config, plan.weights.weights, request.recipe, scratch, text=text, progress=progress)
            plan = replace(plan, recipe=chosen.recipe, layout=WeightLayout(chosen.sources, chosen.recipe))
        handle = os.open(temporary, os.O_RDWR)
        stack.callback(os.close, handle)
        base = finish.model_offset if finish else 0
        root, size = _write_model(plan, compiler, handle, base, clock, progress)
        manifest = _manifest(request, plan, checkpoint, text)
        root.set_manifest(manifest)
        root.write(handle, base)
        if finish:
            finish(temporary, size, manifest)
        verification = None
        if prove is not None:
            clock.start("verify")
            verification = dict(prove(temporary))
            manifest |= {"verification": verification}
            root.set_manifest(manifest)
            root.write(handle, base)
            if finish:
                finish.replace_manifest(temporary, manifest)
        clock.start("finish")
        size = temporary.stat().st_size
    save_result(request.output, "manifest", manifest)
    return ExportReport(
        request.output,
        size,
        plan.recipe.name,
        plan.family,
        plan.weights.parameters(),
        plan.shape.graph.signatures,
        plan.shape.context,
        clock.stop(),
        verification,
        str(plan.layout.carry) if plan.layout.carry else None,
        str(plan.shape.cache_dtype),
    )


def _require_the_same_tokenizer(checkpoint: Path, adapter: Path) -> None:
    """A bundle carries the checkpoint's tokenizer; an adapter that was trained with another brings its own."""
    if not any((adapter / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return
    base, own = Tokenizer.load(checkpoint), Tokenizer.load(adapter)
    different = ["tokenizer"] if base.to_bytes() != own.to_bytes() else []
    different += ["chat template"] if own.chat_template is not None and base.chat_template != own.chat_template else []
    if different:
        raise ExportError(
            f"{adapter} brings another {' and '.join(different)} than {checkpoint}, whose the bundle would carry: put the adapter's "
            "tokenizer files in the place of the checkpoint's (in a copy of its directory), or export a .tflite file"
        )


def require_suffix(output: Path) -> None:
    """OutputError for an output that does not say its format."""
    if output.suffix not in SUFFIXES:
        raise OutputError(f"{output}: the suffix says the format; use {' or '.join(SUFFIXES)}")


def _write_model(
    plan: ExportPlan,
    compiler: Compiler,
    handle: int,
    base: int,
    clock: "_Clock",
    progress: Progress | None,
) -> tuple[Root, int]:
    """Weights and root in their places, `base` bytes into the file; returns the root and the model's size.

    The weights of a large model are written while its graph is compiled, behind space that is kept for the root.
    """
    weights_at, scales = 0, None
    if plan.layout.size >= CONCURRENT_FROM:
        clock.start("weights")
        weights_at = align(_space_for_root(plan))
        scales = plan.layout.write(handle, base + weights_at, progress=progress)
    clock.start("compile")
    root = link(compiler.result(), plan.layout)
    if scales is None or len(root) > weights_at:
        clock.start("weights")
        weights_at = align(len(root))
        scales = plan.layout.write(handle, base + weights_at, progress=progress)
    root.place(weights_at, scales)
    return root, weights_at + plan.layout.size


def _space_for_root(plan: ExportPlan) -> int:
    """Bytes that hold the root: its scales, its manifest, its graph."""
    return plan.layout.channel_scale_bytes() + MANIFEST_CAPACITY + plan.shape.graph.room


def _require_space(output: Path, plan: ExportPlan) -> None:
    status = os.statvfs(output.parent)
    free = status.f_bavail * status.f_frsize
    if free < plan.layout.size:
        raise OutputError(
            f"{output} needs {plan.layout.size / 1e6:.1f} MB and {output.parent} has {free / 1e6:.1f} MB left: free some space"
        )


def _calibration_text(request: ExportRequest, plan: ExportPlan) -> CalibrationText | None:
    if request.calibration is None or not request.recipe.needs_text(plan.weights.weights):
        return None
    config = plan.config
    return read_text(request.calibration, request.checkpoint, vocab_size=config.vocab_size, max_positions=config.max_positions)


def _manifest(request: ExportRequest, plan: ExportPlan, checkpoint: TensorStore, text: CalibrationText | None) -> dict[str, Any]:
    packages = ("torch", "litert-torch", "ai-edge-litert", "litert-lm-builder")
    return {
        "flatlm": __version__,
        "family": plan.family,
        "recipe": replace(plan.recipe, activations={}).to_dict(),  # ranges are in the graphs, and would not fit here
        **({"calibration": {"file": request.calibration.name, "tokens": text.count()}} if request.calibration and text else {}),
        "checkpoint": checkpoint.fingerprint(),
        **({"lora": checkpoint.adapter_facts()} if isinstance(checkpoint, LoraStore) else {}),
        "parameters": plan.weights.parameters(),
        "signatures": list(plan.shape.graph.signatures),
        "kv_cache_len": plan.shape.context,
        **({} if plan.shape.cache_dtype is CacheDtype.FLOAT32 else {"kv_cache_dtype": str(plan.shape.cache_dtype)}),
        "vocab_size": plan.config.vocab_size,
        **_tokenizer(request.checkpoint),
        "ignored_tensors": list(plan.weights.ignored),
        "ignored_config_keys": list(request.reading.ignored_config_keys),
        **plan.shape.facts,
        **_custom(request.reading),
        **_crf(plan, checkpoint),
        **({"integers": plan.layout.carry.to_dict()} if plan.layout.carry else {}),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _custom(reading: Reading) -> dict[str, Any]:
    """The file whose code is the model, if one is."""
    if reading.custom is None:
        return {}
    beside = {str(file.relative_to(reading.custom.resolve().parent)): file_digest(file) for file in imported_beside(reading.custom)}
    facts = {"file": reading.custom.name, "sha256": file_digest(reading.custom)}
    return {"custom": {**facts, "imports": beside} if beside else facts}


def _crf(plan: ExportPlan, checkpoint: TensorStore) -> dict[str, Any]:
    """What decodes the labels of tokens, where the checkpoint has more than their scores."""
    facts = plan.shape.facts
    found = read_crf(checkpoint, len(facts["labels"])) if facts.get("task") == LABELS_TOKENS and "labels" in facts else None
    return {} if found is None else {"crf": found}


def _tokenizer(checkpoint: Path) -> dict[str, str]:
    """What tells the checkpoint's tokenizer from others; nothing, where it has none that FlatLM reads."""
    try:
        return {"tokenizer": Tokenizer.load(checkpoint).probe()}
    except TokenizerError:
        return {}


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
            self._seconds[stage] = self._seconds.get(stage, 0.0) + time.perf_counter() - since
            self._current = None
        return self._seconds
