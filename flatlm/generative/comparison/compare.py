"""Several files measured by turns: a process for each, all open at once, and each round lets every one run.

A machine's speed drifts, by heat and by what else runs; what happens slowly meets all subjects of a round alike. So figures are
compared within a round, and rounds go alternately forwards and backwards, which cancels a drift within one. A turn of a small model
is several runs, of which the median counts: one run of some milliseconds would tell of the scheduler, and of the last one's caches.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from flatlm.errors import RuntimeFileError
from flatlm.generative.benchmarking.machine import this_machine
from flatlm.generative.benchmarking.record import Measure
from flatlm.generative.benchmarking.session import Closed, Opened, RunTimes, Session
from flatlm.generative.comparison.ratios import Ratio
from flatlm.generative.comparison.record import MEASURES, Comparison, Speeds, SubjectFigures, SubjectRatio
from flatlm.generative.comparison.subject import Subject
from flatlm.generative.memory import available_bytes
from flatlm.generative.model_file import ModelFile, read_model_file
from flatlm.generative.runner import available_cores, split

DEFAULT_PREFILL = 128
DEFAULT_DECODE = 64
DEFAULT_ROUNDS = 10
"""Even, so that as many go forwards as backwards, and enough that one bad round does not widen the interval."""
TURN_S = 0.5
"""A turn ends with the run in which it gets so long."""
MOST_TIMES = 5
"""Rounds that `until` may add up to, as a multiple of those asked for."""

Progress = Callable[[str, int, int], None]


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
    """That count, for each depth; one more before them warms up."""
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


def compare(request: CompareRequest, progress: Progress | None = None) -> Comparison:
    """Measures. Raises RuntimeFileError for what cannot be run, does not fit, or asks for too much memory."""
    plan = _plan(request)
    _require_memory(request.subjects, plan.files)
    threads = available_cores() if request.threads is None else request.threads
    report = progress or (lambda stage, done, total: None)
    with ExitStack() as stack:
        transports = [subject.transport(context=plan.context, llama_cpp_python=request.llama_cpp_python) for subject in request.subjects]
        sessions = [stack.enter_context(Session(transport)) for transport in transports]
        opened = [session.open(threads=threads) for session in sessions]
        times = {depth: _rounds(sessions, request, plan, depth, report) for depth in plan.depths}
        closed = [session.close() for session in sessions]
    return _comparison(request, plan, times, opened, closed)


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


def _rounds(sessions: Sequence[Session], request: CompareRequest, plan: _Plan, depth: int, report: Progress) -> list[list[RunTimes]]:
    """For each subject, what each round that counts gave."""
    times: list[list[RunTimes]] = [[] for _ in sessions]
    most = request.rounds if request.until is None else MOST_TIMES * request.rounds
    for number in range(most + 1):
        report(f"rounds at depth {depth}", number, most + 1)
        order = range(len(sessions)) if number % 2 == 0 else reversed(range(len(sessions)))
        for index in order:
            took = _turn(sessions[index], plan, depth)
            if number:  # the first warms up
                times[index].append(took)
        whole = number >= request.rounds and number % 2 == 0
        if request.until is not None and whole and _widest(times, plan) <= request.until:
            break
    report(f"rounds at depth {depth}", most + 1, most + 1)
    return times


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


def _comparison(
    request: CompareRequest,
    plan: _Plan,
    times: Mapping[int, Sequence[Sequence[RunTimes]]],
    opened: Sequence[Opened],
    closed: Sequence[Closed],
) -> Comparison:
    subjects = request.subjects
    figures = {depth: [_figures(rounds, plan) for rounds in times[depth]] for depth in plan.depths}
    return Comparison(
        subjects=tuple(
            SubjectFigures(
                name=subject.name,
                file=subject.file.name,
                file_bytes=subject.file.stat().st_size,
                runtime=closed[index].machine.runtime,
                depths=tuple(
                    Speeds(depth, **{name: Measure.of(values) for name, values in figures[depth][index].items()}) for depth in plan.depths
                ),
                load_s=opened[index].load_s,
                peak_rss_bytes=closed[index].peak_rss_bytes,
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
        threads=opened[0].threads,
        machine=this_machine(),
        notes=tuple(_notes(plan, subjects)),
        noise=tuple(
            f"while {subject.name} ran, {'; '.join(end.noise)}" for subject, end in zip(subjects, closed, strict=True) if end.noise
        ),
    )


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
