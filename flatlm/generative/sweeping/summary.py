"""A cell's results in a row: what a table of a sweep shows of it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Any

from flatlm.errors import RuntimeFileError
from flatlm.generative.sweeping.plan import Cell
from flatlm.generative.sweeping.record import BENCHMARK, EXPORT, CellRecord
from flatlm.utilities.results import read_json_result, result_path


@dataclass(frozen=True)
class Speeds:
    """On one target; None where it does not tell, or was not measured."""

    target: str
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None


@dataclass(frozen=True)
class TaskScore:
    """Of a task, by the first of its metrics."""

    task: str
    metric: str
    score: float


@dataclass(frozen=True)
class CellSummary:
    """None: not measured."""

    name: str
    model: str
    recipe: str
    signatures: tuple[str, ...]
    kv_cache_len: int | None
    kv_cache_dtype: str
    bytes: int | None
    mean_kl: float | None
    perplexity: float | None
    speeds: tuple[Speeds, ...]
    seconds: float
    """Spent on its steps, when they were done."""
    state: str
    """done, failed, or unfinished."""
    error: str | None
    """Of the first step that failed."""
    scores: tuple[TaskScore, ...] = ()
    """Of tasks and groups that the sweep names, not of those that a group is made of."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def summary_of(record: CellRecord) -> CellSummary:
    """From what lies in the cell's folder; a result that cannot be read is passed over."""
    cell, file = record.job.cell, record.job.file

    def result(kind: str) -> Any:
        try:
            return read_json_result(result_path(file, kind))
        except RuntimeFileError:
            return None

    manifest, evaluation = result("manifest") or {}, result("evaluation") or {}
    measured = {entry.get("target"): entry for entry in result("benchmark") or []}
    done = {target: measured[target] for target in cell.targets if record.is_done(BENCHMARK + target) and target in measured}
    return CellSummary(
        cell.name,
        cell.model.name,
        cell.recipe.name,
        tuple(manifest.get("signatures", ())),
        manifest.get("kv_cache_len", cell.kv_cache_len),
        cell.kv_cache_dtype,
        record.steps.get(EXPORT, {}).get("bytes"),
        evaluation.get("mean_kl"),
        evaluation.get("perplexity"),
        tuple(
            Speeds(target, found.get("prefill_tokens_per_second"), found.get("decode_tokens_per_second")) for target, found in done.items()
        ),
        sum(step.get("seconds", 0.0) for step in record.steps.values()),
        record.state,
        next(iter(record.errors.values()), None),
        tuple(_scores(cell, evaluation.get("tasks") or {})),
    )


def _scores(cell: Cell, tasks: Mapping[str, Mapping[str, float]]) -> Iterator[TaskScore]:
    names = cell.evaluate.tasks.names if cell.evaluate and cell.evaluate.tasks else ()
    for task, metrics in tasks.items():
        if metrics and any(fnmatch(task, name) for name in names):
            metric = next(iter(metrics))
            yield TaskScore(task, metric, metrics[metric])
