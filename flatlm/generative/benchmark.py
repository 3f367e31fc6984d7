"""How fast an exported file runs, and in how much memory: measured in a process of its own, which does nothing else.

Run as a module this is that process: a request, JSON, on its stdin; the report, JSON, on its stdout.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from flatlm.errors import RuntimeFileError
from flatlm.generative.memory import peak_resident_bytes
from flatlm.generative.runner import Runner

_T = TypeVar("_T")
_PREFILL = 128
_DECODE = 64


@dataclass(frozen=True)
class Measure:
    """Median and spread over the runs."""

    median: float
    minimum: float
    maximum: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(float(np.median(values)), min(values), max(values), len(values))


@dataclass(frozen=True)
class BenchmarkReport:
    """One file on one machine, after a warm-up run that does not count."""

    file: str
    prefill_tokens: int
    decode_tokens: int
    threads: int
    prefill_tokens_per_second: Measure
    decode_tokens_per_second: Measure
    time_to_first_token_s: Measure
    """From an empty cache: the prefill, and the step whose logits give the answer's first token."""
    load_s: float
    """Opening the file once, its weights packed anew, the runtime imported."""
    peak_rss_bytes: int
    """Of the process, mapped files included."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON: medians under the measures' names, their spread under `spread`."""
        fields = asdict(self)
        spread = {name: value for name, value in fields.items() if isinstance(value, dict)}
        return fields | {name: value["median"] for name, value in spread.items()} | {"spread": spread}


def benchmark(
    path: Path | str, *, prefill: int | None = None, decode: int | None = None, runs: int = 5, threads: int | None = None
) -> BenchmarkReport:
    """Measures `runs` times: a prompt of `prefill` tokens (by default 128, or half the cache), then `decode` more (64)."""
    for name, value in (("prefill", prefill), ("decode", decode), ("runs", runs)):
        if value is not None and value < 1:
            raise RuntimeFileError(f"--{name} {value} is not possible: it is 1 or more")
    request = {"path": str(path), "prefill": prefill, "decode": decode, "runs": runs, "threads": threads}
    package = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))}
    command = [sys.executable, "-m", __name__]
    child = subprocess.run(command, input=json.dumps(request), env=environment, capture_output=True, text=True, check=False)
    try:
        reply = json.loads(child.stdout)
    except json.JSONDecodeError:
        raise RuntimeFileError(f"{path}: the process that measures it {_ending(child.returncode)}{_last_line(child.stderr)}") from None
    if "error" in reply:
        raise RuntimeFileError(reply["error"])
    fields: dict[str, Any] = {name: Measure(**value) if isinstance(value, dict) else value for name, value in reply.items()}
    return BenchmarkReport(**fields)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return f": {lines[-1]}" if lines else ""


def _measure(path: str, *, prefill: int | None, decode: int | None, runs: int, threads: int | None) -> BenchmarkReport:
    """In this process."""
    load, runner = _timed(lambda: Runner.open(path, threads=threads))
    prefill = prefill or min(_PREFILL, runner.cache_length // 2)
    decode = decode or max(1, min(_DECODE, runner.cache_length - prefill - 1))
    if (needed := prefill + 1 + decode) > runner.cache_length:
        raise RuntimeFileError(
            f"{path}: --prefill {prefill} and --decode {decode} need a context of {needed} tokens; it has {runner.cache_length}"
        )
    ids = np.random.default_rng(0).integers(0, runner.vocab_size, needed).tolist()
    timings = [_run(runner, ids, prefill) for _ in range(runs + 1)][1:]  # the first one warms up
    return BenchmarkReport(
        file=path,
        prefill_tokens=prefill,
        decode_tokens=decode,
        threads=runner.threads,
        prefill_tokens_per_second=Measure.of([prefill / read for read, _, _ in timings]),
        decode_tokens_per_second=Measure.of([decode / wrote for _, _, wrote in timings]),
        time_to_first_token_s=Measure.of([read + first for read, first, _ in timings]),
        load_s=load,
        peak_rss_bytes=peak_resident_bytes(),
    )


def _run(runner: Runner, ids: list[int], prefill: int) -> tuple[float, float, float]:
    """Seconds of reading ids[:prefill], of the first step, and of a step for each id after it."""
    runner.reset()
    read, _ = _timed(lambda: runner.prefill(ids[:prefill]))
    first, _ = _timed(lambda: runner.step(ids[prefill]))
    rest, _ = _timed(lambda: [runner.step(token) for token in ids[prefill + 1 :]])
    return read, first, rest


def _timed(work: Callable[[], _T]) -> tuple[float, _T]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _worker() -> None:
    request = json.load(sys.stdin)
    try:
        reply = asdict(_measure(request.pop("path"), **request))
    except RuntimeFileError as error:
        reply = {"error": str(error)}
    json.dump(reply, sys.stdout)


if __name__ == "__main__":
    _worker()
