"""The programs that measure on a device without Python, and what each can tell.

LiteRT's `benchmark_model` calls one signature of a .tflite again and again, and LiteRT-LM's `litert_lm_advanced_main` reads and
writes made-up tokens with a .litertlm. Which one a file is, and which flags its version knows, its own --help says.
"""

import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flatlm.errors import TargetError
from flatlm.generative.benchmarking.measure import WARM_S
from flatlm.generative.benchmarking.record import DepthSpeeds, Measure
from flatlm.generative.file_content import SignatureSpec
from flatlm.generative.model_file import ModelFile
from flatlm.generative.signature_calls import split
from flatlm.generative.targets.benchmark_output import Iteration, ModelTimings, parse_benchmark_model, parse_litert_lm

WHERE_FROM = (
    "for a .tflite LiteRT's benchmark_model, for a .litertlm LiteRT-LM's litert_lm_advanced_main, built for Android "
    "(docs/devices.md says where to get them)"
)
_FLAG = re.compile(r"--(\w+)\b")
_CACHE_FLAG = "xnnpack_weight_cache_file_path"
_DRAWN = 100
"""A benchmark_model that takes no values draws tokens and positions below this."""


@dataclass(frozen=True)
class Plan:
    """A benchmark whose every number is settled."""

    file: ModelFile
    prefill: int
    decode: int
    depths: tuple[int, ...]
    runs: int
    warmup: int
    threads: int
    weight_cache: bool


@dataclass(frozen=True)
class Findings:
    """What a program told, in the record's terms."""

    depths: tuple[DepthSpeeds, ...]
    time_to_first_token_s: Measure | None
    load_s: Measure | None
    peak_rss_bytes: int | None
    weight_cache: bool
    """Whether it had one: a program that knows no such flag goes without."""


class Place(Protocol):
    """The directory on the device."""

    model: str
    """The model's name there."""

    def run(self, arguments: Sequence[str]) -> str:
        """What the program wrote. Raises TargetError where it fails."""
        ...

    def put(self, name: str, content: bytes) -> None: ...

    def put_zeros(self, name: str, size: int) -> None: ...


class Program(Protocol):
    """One that can measure."""

    name: str
    suffix: str
    """Of the files it reads."""

    def check(self, plan: Plan) -> None:
        """TargetError where it cannot measure what is asked."""
        ...

    def measure(self, plan: Plan, place: Place) -> Findings: ...


def identify(runner: str, help_text: str) -> Program:
    """The program, by its --help and --helpfull. Raises TargetError for any other."""
    flags = frozenset(_FLAG.findall(help_text))
    if {"graph", "num_runs"} <= flags:
        return BenchmarkModel(flags)
    if {"model_path", "backend"} <= flags:
        return LiteRtLm(flags)
    said = " ".join(help_text.split())[:120] or "nothing"
    raise TargetError(f"--runner {runner} is not a program that can measure: {WHERE_FROM}; to --help it says: {said}")


@dataclass(frozen=True)
class BenchmarkModel:
    """LiteRT's `benchmark_model`: TFLite's make, which is given positions and empty caches, or CompiledModel's, which draws them."""

    flags: frozenset[str]
    name = "benchmark_model"
    suffix = ".tflite"

    def check(self, plan: Plan) -> None:
        if "signature_to_run_for" not in self.flags:
            raise TargetError("this benchmark_model cannot choose a signature: it is too old, take a newer one")
        if self._given:
            return
        if any(plan.depths):
            raise TargetError(
                "this benchmark_model knows no --input_layer_value_files, so it measures at no depth but 0; "
                "TFLite's (tflite/tools/benchmark) measures at others"
            )
        if plan.file.cache_length < _DRAWN or plan.file.vocab_size < _DRAWN:
            raise TargetError(
                f"this benchmark_model knows no --input_layer_value_files, and draws tokens and positions up to {_DRAWN - 1}: "
                f"too many for a context of {plan.file.cache_length} and {plan.file.vocab_size} tokens; take TFLite's"
            )

    @property
    def _given(self) -> bool:
        return "input_layer_value_files" in self.flags

    def measure(self, plan: Plan, place: Place) -> Findings:
        """A process for each length of prefill, whose calls are the runs; a process for each run of decode, whose calls are the steps."""
        timings: list[ModelTimings] = []
        orders = _orders(plan.file.path) if self._given else {}

        def timed(signature: SignatureSpec, position: int, calls: int) -> ModelTimings:
            inputs = _inputs(plan.file, place, signature, position, orders[signature.name]) if self._given else []
            timing = parse_benchmark_model(place.run(self._arguments(plan, place, signature, calls) + inputs))
            if "signature" in timing.ignored:
                raise TargetError(f"benchmark_model knows no --signature_to_run_for: {timing.ignored}")
            timings.append(timing)
            return timing

        lengths = {signature.length: signature for signature in plan.file.prefill}
        speeds, first = [], None
        for depth in plan.depths:
            steps = [timed(plan.file.decode, depth + plan.prefill, plan.decode) for _ in range(plan.runs)]
            calls = split(plan.prefill, lengths=tuple(lengths), room=plan.file.cache_length - depth)
            reads = {n: timed(lengths[n], depth, plan.runs) if n > 1 else steps[0] for n in dict.fromkeys(calls)}
            read, fastest, slowest = (sum(values) for values in zip(*(reads[n].spread_s for n in calls), strict=True))
            decode = Measure.of([1 / step.mean_s for step in steps])
            speeds.append(
                DepthSpeeds(depth, Measure(plan.prefill / read, plan.prefill / slowest, plan.prefill / fastest, plan.runs), decode)
            )
            if depth == 0:
                step = Measure.of([step.mean_s for step in steps])
                first = Measure(read + step.median, fastest + step.minimum, slowest + step.maximum, plan.runs)
        peaks = [timing.peak_rss_bytes for timing in timings if timing.peak_rss_bytes is not None]
        cached = plan.weight_cache and _CACHE_FLAG in self.flags
        return Findings(tuple(speeds), first, Measure.of([timing.load_s for timing in timings]), max(peaks, default=None), cached)

    def _arguments(self, plan: Plan, place: Place, signature: SignatureSpec, calls: int) -> list[str]:
        flags: dict[str, object] = {
            "graph": place.model,
            "signature_to_run_for": signature.name,
            "num_threads": plan.threads,
            "warmup_runs": plan.warmup,
            "warmup_min_secs": WARM_S if plan.warmup else 0,
            "num_runs": calls,
            "min_secs": 0,
            "max_secs": 86400,
            "report_peak_memory_footprint": "true",
        }
        if "use_xnnpack" in self.flags:
            flags["use_xnnpack"] = "true"
        if plan.weight_cache and _CACHE_FLAG in self.flags:
            flags[_CACHE_FLAG] = ":memory"  # XNNPACK's word for a cache without a file
        return [f"--{name}={value}" for name, value in flags.items()]


def _inputs(file: ModelFile, place: Place, signature: SignatureSpec, position: int, order: Sequence[str]) -> list[str]:
    """Flags that give every input its values: tokens from 0 up, positions from `position` up, caches of zeros.

    `order`: of the graph's inputs, for the flags are read in it, whatever names they give.
    """
    values: dict[str, str] = {}
    length = np.arange(signature.length, dtype=np.int32)
    for name, tensor in signature.inputs.items():
        size = int(np.prod(tensor.shape)) * tensor.dtype.itemsize
        if name == "tokens":
            values[name] = f"tokens_{signature.length}"
            place.put(values[name], (length % file.vocab_size).tobytes())
        elif name == "input_pos":
            values[name] = f"positions_{position}_{signature.length}"
            place.put(values[name], (length + position).tobytes())
        else:
            values[name] = f"zeros_{size}"
            place.put_zeros(values[name], size)
    shapes = ":".join(",".join(map(str, signature.inputs[name].shape)) for name in order)
    files = ",".join(f"{name}:{values[name]}" for name in order)
    return [f"--input_layer={','.join(order)}", f"--input_layer_shape={shapes}", f"--input_layer_value_files={files}"]


def _orders(path: Path) -> Mapping[str, tuple[str, ...]]:
    """For each signature of a .tflite, its inputs' names in the order of its graph."""
    from ai_edge_litert import schema_py_generated as schema

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        model: Any = schema.Model.GetRootAsModel(content, 0)
        orders = {}
        for definition in (model.SignatureDefs(i) for i in range(model.SignatureDefsLength())):
            names = {item.TensorIndex(): item.Name().decode() for item in map(definition.Inputs, range(definition.InputsLength()))}
            graph = model.Subgraphs(definition.SubgraphIndex())
            orders[definition.SignatureKey().decode()] = tuple(names[graph.Inputs(i)] for i in range(graph.InputsLength()))
    return orders


@dataclass(frozen=True)
class LiteRtLm:
    """LiteRT-LM's `litert_lm_advanced_main`. Its `litert_lm_main` cannot be told how many tokens to measure with."""

    flags: frozenset[str]
    name = "LiteRT-LM"
    suffix = ".litertlm"

    def check(self, plan: Plan) -> None:
        needed = ("benchmark", "benchmark_prefill_tokens", "benchmark_decode_tokens", "num_cpu_threads", "async")
        if missing := [flag for flag in needed if flag not in self.flags]:
            raise TargetError(f"this program of LiteRT-LM knows no --{missing[0]}: take litert_lm_advanced_main, or a newer one")
        if any(plan.depths):
            raise TargetError("LiteRT-LM's program measures from an empty context: --depths 0 is the only one it can")
        if not plan.weight_cache and not self._uncached:
            raise TargetError("this program of LiteRT-LM cannot go without XNNPACK's weight cache: take a newer one")

    @property
    def _uncached(self) -> str | None:
        return next((flag for flag in ("disable_weight_cache", "disable_cache") if flag in self.flags), None)

    def measure(self, plan: Plan, place: Place) -> Findings:
        """One process whose iterations are the warm-up and the runs; where it cannot repeat, a process for each."""
        repeats = plan.warmup + plan.runs
        together = "num_iterations" in self.flags
        outputs = [parse_litert_lm(place.run(self._arguments(plan, place, repeats))) for _ in range(1 if together else repeats)]
        found: list[Iteration] = [iteration for output in outputs for iteration in output.iterations]
        if len(found) != repeats:
            raise TargetError(f"LiteRT-LM told of {len(found)} iterations, not of {repeats}")
        counted = found[plan.warmup :]
        loads = [item.load_s for item in (found[:1] if together else counted) if item.load_s is not None]
        peaks = [output.peak_rss_bytes for output in outputs if output.peak_rss_bytes is not None]
        speeds = DepthSpeeds(
            0,
            Measure.of([item.prefill_tokens / item.prefill_s for item in counted]),
            Measure.of([item.decode_tokens / item.decode_s for item in counted]),
        )
        first = Measure.of([item.time_to_first_token_s for item in counted])
        return Findings((speeds,), first, Measure.of(loads) if loads else None, max(peaks, default=None), plan.weight_cache)

    def _arguments(self, plan: Plan, place: Place, repeats: int) -> list[str]:
        flags: dict[str, object] = {
            "backend": "cpu",
            "model_path": place.model,
            "benchmark": "true",
            "benchmark_prefill_tokens": plan.prefill,
            "benchmark_decode_tokens": plan.decode,
            "num_cpu_threads": plan.threads,
            "async": "false",
        }
        known = {"max_num_tokens": plan.file.cache_length, "num_iterations": repeats, "report_peak_memory_footprint": "true"}
        if plan.weight_cache:
            known["cache_dir"] = ":memory"  # else it writes a file beside the model
        elif self._uncached:
            known[self._uncached] = "true"
        flags |= {name: value for name, value in known.items() if name in self.flags}
        return [f"--{name}={value}" for name, value in flags.items()]
