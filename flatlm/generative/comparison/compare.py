"""Several files measured by turns: a process for each, all open at once, round after round.

A machine's speed drifts, by heat and by what else runs; what happens slowly meets all subjects of a round alike. So figures are
compared within a round, in which every subject has a turn forwards and a turn backwards, A B B A: a drift cancels in their mean. A
turn of a small model is several runs, of which the median counts: one run of some milliseconds would tell of the scheduler, and of
the last one's caches.

A process keeps for its life what the placement of its memory makes of it (pages, caches): two copies of one file can differ by
several percent for as long as they run. Rounds in the same processes share that, and an interval over them would not know of it. So
each round has fresh processes, warmed up anew, and rounds are the independent values that `ratios.py` asks for. Where that would cost
more than it tells (FRESH_S), one process of each subject serves all rounds, and the notes say what the intervals then leave out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np

from flatlm.errors import RuntimeFileError
from flatlm.generative.benchmarking.machine import this_machine
from flatlm.generative.benchmarking.record import Measure
from flatlm.generative.benchmarking.session import RunTimes, Session
from flatlm.generative.benchmarking.steadiness import unsteady
from flatlm.generative.comparison.processes import Processes, noise
from flatlm.generative.comparison.ratios import Ratio
from flatlm.generative.comparison.record import MEASURES, Comparison, Speeds, SubjectFigures, SubjectRatio
from flatlm.generative.comparison.subject import Subject
from flatlm.generative.loading import available_cores
from flatlm.generative.memory import available_bytes
from flatlm.generative.model_file import ModelFile, read_model_file
from flatlm.generative.signature_calls import split
from flatlm.progress import Progress

DEFAULT_PREFILL = 128
DEFAULT_DECODE = 64
DEFAULT_ROUNDS = 9
"""The fewest of which one bad round does not widen the interval."""
TURN_S = 0.25
"""A turn ends with the run in which it gets so long."""
FRESH_S = 2.0
"""Processes are fresh in each round where every subject is ready in less: its file loaded, its context filled."""
MOST_TIMES = 5
"""Rounds that `until` may add up to, as a multiple of those asked for."""


@dataclass(frozen=True)
class CompareRequest:
    """What to measure. None: a default that fits all subjects."""

    subjects: tuple[Subject, ...]
    """Ratios are to the first."""
    prefill: int | None = None
    """Tokens of the prompt."""
    decode: int | None = None
    """Tokens decoded after it."""
    depths: tuple[int, ...] = (0,)
    """Tokens that are in the context already when the prompt is read."""
    rounds: int = DEFAULT_ROUNDS
    """For each depth; in each, every subject has two turns, after one that warms up where its process is fresh."""
    until: float | None = None
    """Go on until every interval of a speed's ratio is within so large a part of it (0.05: 5 %), but at most MOST_TIMES the rounds."""
    threads: int | None = None
    llama_cpp_python: Path | None = None
    """An interpreter that has llama-cpp-python, if not this one."""


@dataclass(frozen=True)
class _Plan:
    """Lengths that every subject has room for."""

    files: Mapping[str, ModelFile]
    """Of the subjects that LiteRT runs, by name."""
    prefill: int
    decode: int
    depths: tuple[int, ...]

    @property
    def context(self) -> int:
        """Tokens of the longest text."""
        return self.depths[-1] + self.prefill + 1 + self.decode


@dataclass
class _Rounds:
    """Those of one depth."""

    times: list[list[RunTimes]]
    """For each subject, what each round gave."""
    fresh: bool = True
    """Each in processes of its own."""


def compare(request: CompareRequest, progress: Progress | None = None) -> Comparison:
    """Measures. Raises RuntimeFileError for what cannot be run, does not fit, or asks for too much memory."""
    plan = _plan(request)
    _require_memory(request.subjects, plan.files)
    threads = available_cores() if request.threads is None else request.threads
    report = progress or (lambda stage, done, total: None)
    transports = [subject.transport(context=plan.context, llama_cpp_python=request.llama_cpp_python) for subject in request.subjects]
    with Processes(transports, threads) as processes:
        rounds = {depth: _rounds(processes, request, plan, depth, report) for depth in plan.depths}
        processes.end()
    return _comparison(request, plan, rounds, processes)


def _plan(request: CompareRequest) -> _Plan:
    subjects = request.subjects
    if len(subjects) < 2:
        raise RuntimeFileError("there is nothing to compare: give two subjects or more")
    for name, value in (("prefill", request.prefill), ("decode", request.decode), ("rounds", request.rounds), ("threads", request.threads)):
        if value is not None and value < 1:
            raise RuntimeFileError(f"--{name} {value} is not possible: it is 1 or more")
    if not request.depths or min(request.depths) < 0:
        raise RuntimeFileError(f"--depths {','.join(map(str, request.depths))} is not possible: each is 0 or more")
    if request.until is not None and not 0 < request.until < 1:
        raise RuntimeFileError(f"--until {request.until:.4%} is not possible: it is above 0 and below 100 %")
    depths = tuple(sorted(set(request.depths)))
    files = {subject.name: read_model_file(subject.file) for subject in subjects if not subject.gguf}
    room = min((file.cache_length for file in files.values()), default=depths[-1] + 2 * (DEFAULT_PREFILL + DEFAULT_DECODE)) - depths[-1]
    prefill = request.prefill or _default_prefill(list(files.values()), room)
    plan = _Plan(files, prefill, request.decode or max(1, min(DEFAULT_DECODE, room - prefill - 1)), depths)
    for subject in subjects:
        if subject.name in files and plan.context > (length := files[subject.name].cache_length):
            raise RuntimeFileError(
                f"{subject.file}: a depth of {depths[-1]}, --prefill {plan.prefill} and --decode {plan.decode} need a context of "
                f"{plan.context} tokens; it has {length}"
            )
    return plan


def _default_prefill(files: Sequence[ModelFile], room: int) -> int:
    """The longest signature that all files have and that leaves half of the room for decoding, or else a length that fits."""
    lengths = [{spec.length for spec in file.prefill} for file in files]
    common = [length for length in set.intersection(*lengths) if 2 * length <= room] if lengths else []
    return max(common, default=max(1, min(DEFAULT_PREFILL, room // 2)))


def _require_memory(subjects: Sequence[Subject], files: Mapping[str, ModelFile]) -> None:
    """All subjects are in memory at once: one that is swapped out would be measured for that."""
    available = available_bytes()
    sizes = [_least_bytes(subject, files.get(subject.name)) for subject in subjects]
    if available is not None and sum(sizes) > available:
        parts = ", ".join(f"{subject.name} {size / 1e6:,.0f} MB" for subject, size in zip(subjects, sizes, strict=True))
        raise RuntimeFileError(
            f"all subjects are open at once and need at least {sum(sizes) / 1e6:,.0f} MB ({parts}), of which {available / 1e6:,.0f} MB "
            "are free: compare fewer of them, or end other programs"
        )


def _least_bytes(subject: Subject, file: ModelFile | None) -> int:
    """Its weights, packed or mapped, and its caches."""
    if file is None:
        return subject.file.stat().st_size
    caches = file.decode.caches.values()
    return file.size + sum(int(np.prod(spec.shape)) * spec.dtype.itemsize for spec in caches)


def _rounds(processes: Processes, request: CompareRequest, plan: _Plan, depth: int, report: Progress) -> _Rounds:
    """All of one depth."""
    found = _Rounds([[] for _ in request.subjects])
    most = request.rounds if request.until is None else MOST_TIMES * request.rounds
    forwards = range(len(request.subjects))
    for number in range(most):
        report(f"rounds at depth {depth}", number, most)
        order = forwards if number % 2 == 0 else forwards[::-1]
        if not processes.sessions:
            processes.start(order)
        if number == 0 or found.fresh:
            for index in order:
                _turn(processes.sessions[index], plan, depth)
        turns = [(index, _turn(processes.sessions[index], plan, depth)) for index in (*order, *order[::-1])]
        for index in order:
            found.times[index].append(_mean([took for whose, took in turns if whose == index]))
        if number == 0:
            found.fresh = _ready_s(processes, found, plan, depth) < FRESH_S
        if found.fresh:
            processes.end()
        if request.until is not None and number + 1 >= request.rounds and _widest(found.times, plan) <= request.until:
            break
    report(f"rounds at depth {depth}", most, most)
    return found


def _ready_s(processes: Processes, found: _Rounds, plan: _Plan, depth: int) -> float:
    """Of the slowest subject: seconds to load its file, and to fill its context at the speed of its prompt."""
    return max(
        opened[-1].load_s + depth * times[-1].prefill_s / plan.prefill for opened, times in zip(processes.opened, found.times, strict=True)
    )


def _turn(session: Session, plan: _Plan, depth: int) -> RunTimes:
    """Medians of its runs."""
    runs = list[RunTimes]()
    while not runs or sum(run.prefill_s + run.first_s + run.decode_s for run in runs) < TURN_S:
        runs.append(session.run(depth=depth, prefill=plan.prefill, decode=plan.decode))
    return RunTimes(
        prefill_s=median(run.prefill_s for run in runs),
        first_s=median(run.first_s for run in runs),
        decode_s=median(run.decode_s for run in runs),
        energy_j=None,
    )


def _mean(turns: Sequence[RunTimes]) -> RunTimes:
    """A drift that adds as much to each turn as to the last is in the mean of both ways the same for all subjects."""
    return RunTimes(
        prefill_s=fmean(turn.prefill_s for turn in turns),
        first_s=fmean(turn.first_s for turn in turns),
        decode_s=fmean(turn.decode_s for turn in turns),
        energy_j=None,
    )


def _widest(times: Sequence[Sequence[RunTimes]], plan: _Plan) -> float:
    """Of the intervals of all speeds' ratios."""
    figures = [_figures(rounds, plan) for rounds in times]
    measures = [name for name in MEASURES if name.endswith("per_second")]
    return max(Ratio.of(other[name], figures[0][name]).half_width for other in figures[1:] for name in measures)


def _figures(rounds: Sequence[RunTimes], plan: _Plan) -> dict[str, list[float]]:
    """Each measure, round by round."""
    return {
        "prefill_tokens_per_second": [plan.prefill / run.prefill_s for run in rounds],
        "decode_tokens_per_second": [plan.decode / run.decode_s for run in rounds],
        "time_to_first_token_s": [run.prefill_s + run.first_s for run in rounds],
    }


def _comparison(request: CompareRequest, plan: _Plan, rounds: Mapping[int, _Rounds], processes: Processes) -> Comparison:
    subjects, opened, closed = request.subjects, processes.opened, processes.closed
    figures = {depth: [_figures(times, plan) for times in rounds[depth].times] for depth in plan.depths}
    return Comparison(
        subjects=tuple(
            SubjectFigures(
                name=subject.name,
                file=subject.file.name,
                file_bytes=subject.file.stat().st_size,
                runtime=closed[index][-1].machine.runtime,
                depths=tuple(
                    Speeds(depth, **{name: Measure.of(values) for name, values in figures[depth][index].items()}) for depth in plan.depths
                ),
                load_s=Measure.of([start.load_s for start in opened[index]]),
                peak_rss_bytes=max(end.peak_rss_bytes for end in closed[index]),
            )
            for index, subject in enumerate(subjects)
        ),
        ratios=tuple(
            SubjectRatio(subject.name, subjects[0].name, name, depth, Ratio.of(figures[depth][index][name], figures[depth][0][name]))
            for depth in plan.depths
            for index, subject in enumerate(subjects)
            for name in MEASURES
            if index
        ),
        prefill_tokens=plan.prefill,
        decode_tokens=plan.decode,
        threads=opened[0][0].threads,
        machine=this_machine(),
        notes=(*_notes(plan, subjects), *_kept(rounds)),
        noise=tuple(clause for index, subject in enumerate(subjects) for clause in noise(subject.name, closed[index]))
        + unsteady(_series(subjects, rounds), "rounds"),
    )


def _series(subjects: Sequence[Subject], rounds: Mapping[int, _Rounds]) -> dict[str, list[float]]:
    """Seconds of each round's prefill and of its decode, by what they are called."""
    series = {}
    for depth, found in rounds.items():
        where = f" at depth {depth}" if len(rounds) > 1 else ""
        for subject, times in zip(subjects, found.times, strict=True):
            series[f"{subject.name}'s prefill{where}"] = [time.prefill_s for time in times]
            series[f"{subject.name}'s decode{where}"] = [time.decode_s for time in times]
    return series


def _kept(rounds: Mapping[int, _Rounds]) -> list[str]:
    kept = [depth for depth, found in rounds.items() if not found.fresh]
    if not kept:
        return []
    where = f" at depth {', '.join(map(str, kept))}" if len(kept) < len(rounds) else ""
    return [
        f"each subject had one process for all rounds{where}, since it takes {FRESH_S:g} s or more to be ready: the intervals leave out "
        "what a process keeps for its life (the placement of its memory), which can be some percent"
    ]


def _notes(plan: _Plan, subjects: Sequence[Subject]) -> list[str]:
    """Subjects whose signatures do not fit the prompt do more work for it, or do it in smaller steps."""
    notes = []
    for name, file in plan.files.items():
        calls = split(plan.prefill, lengths=[spec.length for spec in file.prefill], room=file.cache_length - plan.depths[-1])
        if len(calls) > 1 or sum(calls) > plan.prefill:
            padded = f", {sum(calls) - plan.prefill} tokens of padding among them" if sum(calls) > plan.prefill else ""
            lengths = ", ".join(f"{calls.count(length)} of {length}" for length in dict.fromkeys(calls))
            notes.append(f"{name} reads the prompt of {plan.prefill} tokens by calls of other lengths ({lengths}){padded}")
    if all(subject.gguf for subject in subjects):
        notes.append("llama.cpp's processes do not watch the machine: what else ran is not known")
    return notes
