"""Speeds, times, memory and energy of one file, through a worker: warm-up, repeated runs, medians.

Runs go on for a while, however short each is: what slows a machine for half a second, a neighbour or its clock, would otherwise be
all that the runs of a small file saw.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

from flatlm.errors import RuntimeFileError
from flatlm.generative.benchmarking.record import BenchmarkRecord, BenchmarkRequest, DepthSpeeds, Measure
from flatlm.generative.benchmarking.session import RunTimes, Session, Transport
from flatlm.generative.benchmarking.steadiness import unsteady
from flatlm.progress import Progress

PREFILL = 128
DECODE = 64
WARM_S = 0.5
"""Warm-up goes on for so long: clocks rise and caches fill in time, not in runs, and a small file's run is over in milliseconds."""
MEASURED_S = 2.0
"""The counted runs at a depth take at least so long together, if there are not MOST_RUNS before."""
MOST_RUNS = 200
"""A run of a few milliseconds is followed by as long a look at the machine."""
LOADS = 3
LONG_LOAD_S = 10.0
"""A file that takes longer to load is loaded once."""


def measure(transport: Transport, request: BenchmarkRequest, target: str, progress: Progress | None) -> BenchmarkRecord:
    """Runs the file where the transport's workers run. `target`: its name for the record.

    Raises RuntimeFileError for a file or a request that cannot be run, and what the transport says of a worker that is lost.
    """
    check_request(request)
    depths = tuple(sorted(set(request.depths)))
    done, total = count(1), len(depths) * request.runs + LOADS

    def said() -> None:
        if progress:
            progress("benchmark", next(done), total)

    with Session(transport) as session:
        opened = session.open(threads=request.threads, weight_cache=request.weight_cache)
        said()
        prefill, decode = plan_tokens(request, opened.cache_length)
        runs: dict[int, list[RunTimes]] = {}
        for depth in depths:
            run = partial(session.run, depth=depth, prefill=prefill, decode=decode)
            _warm_up(run, request.warmup)
            runs[depth] = []
            while len(runs[depth]) < request.runs or (len(runs[depth]) < MOST_RUNS and sum(map(_seconds, runs[depth])) < MEASURED_S):
                runs[depth].append(run())
                if len(runs[depth]) <= request.runs:
                    said()
        closed = session.close()
    loads = [opened.load_s]
    while len(loads) < LOADS and opened.load_s < LONG_LOAD_S:
        with Session(transport) as session:
            loads.append(session.open(threads=request.threads, weight_cache=request.weight_cache).load_s)
        said()
    first = runs[depths[0]]
    joules = [times.energy_j / decode for times in first if times.energy_j is not None]
    return BenchmarkRecord(
        file=request.file.name,
        file_bytes=request.file.stat().st_size,
        target=target,
        machine=closed.machine,
        threads=opened.threads,
        weight_cache=request.weight_cache,
        prefill_tokens=prefill,
        decode_tokens=decode,
        depths=tuple(_speeds(depth, times, prefill, decode) for depth, times in runs.items()),
        time_to_first_token_s=None if depths[0] else Measure.of([times.prefill_s + times.first_s for times in first]),
        load_s=Measure.of(loads),
        peak_rss_bytes=closed.peak_rss_bytes,
        energy_j_per_token=Measure.of(joules) if len(joules) == len(first) else None,
        noise=(*closed.noise, *unsteady(_series(runs), "runs")),
    )


def _warm_up(run: Callable[[], RunTimes], least: int) -> None:
    """At least so many runs; none where none was asked for."""
    seconds, done = 0.0, 0
    while done < least or (least and seconds < WARM_S):
        seconds += _seconds(run())
        done += 1


def _seconds(times: RunTimes) -> float:
    return times.prefill_s + times.first_s + times.decode_s


def _series(runs: Mapping[int, Sequence[RunTimes]]) -> dict[str, list[float]]:
    """Seconds of each run's prefill and of its decode, by what they are called."""
    series = {}
    for depth, times in runs.items():
        where = f" at depth {depth}" if len(runs) > 1 else ""
        series[f"prefill{where}"] = [time.prefill_s for time in times]
        series[f"decode{where}"] = [time.decode_s for time in times]
    return series


def _speeds(depth: int, times: Sequence[RunTimes], prefill: int, decode: int) -> DepthSpeeds:
    return DepthSpeeds(
        depth, Measure.of([prefill / time.prefill_s for time in times]), Measure.of([decode / time.decode_s for time in times])
    )


def check_request(request: BenchmarkRequest) -> None:
    """Raises RuntimeFileError for a number that no file could be measured with."""
    numbers: list[tuple[str, Any, int]] = [(name, getattr(request, name), 1) for name in ("prefill", "decode", "runs", "threads")]
    numbers += [("warmup", request.warmup, 0), *(("depths", depth, 0) for depth in request.depths)]
    for name, value, least in numbers:
        if value is not None and value < least:
            raise RuntimeFileError(f"--{name} {value} is not possible: it is {least} or more")
    if not request.depths:
        raise RuntimeFileError("no depth was given to measure at: 0 is an empty context")


def plan_tokens(request: BenchmarkRequest, cache_length: int) -> tuple[int, int]:
    """Tokens of the prompt and of the answer after its first. RuntimeFileError where they do not fit behind the deepest depth."""
    depth = max(request.depths)
    room = cache_length - depth
    prefill = request.prefill or max(1, min(PREFILL, room // 2))
    decode = request.decode or max(1, min(DECODE, room - prefill - 1))
    if (needed := depth + prefill + 1 + decode) > cache_length:
        deep = f"--depths {depth}, " if depth else ""
        raise RuntimeFileError(
            f"{request.file}: {deep}--prefill {prefill} and --decode {decode} need a context of {needed} tokens; it has {cache_length}"
        )
    return prefill, decode
