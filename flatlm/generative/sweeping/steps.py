"""What is done for one cell, in a process that may die of it: export and prove, inspect, evaluate; and benchmarks, one by one.

Importing this loads nothing heavy: each step imports what it calls.
"""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatlm.errors import FlatlmError, VerificationFailed
from flatlm.generative.prove import prover
from flatlm.generative.sweeping.plan import Cell, EvaluateOptions
from flatlm.generative.sweeping.record import BENCHMARK, EVALUATE, EXPORT, LOG_NAME, CellRecord, Job
from flatlm.utilities.reading import Reading
from flatlm.utilities.results import save_evaluation, save_result

if TYPE_CHECKING:
    from flatlm.utilities.exporter import ExportRequest


def request_of(cell: Cell, file: Path) -> "ExportRequest":
    """As `flatlm export` would be asked."""
    from flatlm.utilities.exporter import ExportRequest

    return ExportRequest(
        cell.model.checkpoint,
        file,
        cell.recipe,
        cell.prefill,
        cell.kv_cache_len,
        cell.prefill_logits,
        Reading(cell.model.family, cell.model.ignored_config_keys),
        lora=cell.model.lora,
        calibration=cell.calibration if cell.recipe.calibrated else None,
        kv_cache_dtype=cell.kv_cache_dtype,
    )


def export_cell(cell: Cell, file: Path) -> None:
    """Writes the file, its manifest and its inspection. Raises FlatlmErrors and VerificationFailed."""
    from flatlm.generative.inspect import inspect_file
    from flatlm.utilities.exporter import export

    request = request_of(cell, file)
    prove = prover(request, tokens=cell.verify_tokens, way_out="sweep it with `verify: false`") if cell.verify else None
    export(request, prove=prove)
    save_result(file, "inspection", inspect_file(file).to_dict())


def evaluate_cell(cell: Cell, file: Path) -> Mapping[str, Any]:
    """What becomes the file's `evaluation`, saved as it goes; the error of each layer is saved as `layers`. Raises FlatlmErrors."""
    options = cell.evaluate
    assert options is not None
    found: dict[str, Any] = {}
    if options.text is not None:
        from flatlm.utilities.documents import read_documents

        documents = read_documents(options.text)
        found |= _evaluate_text(cell, options, documents, file)
        save_evaluation(file, found)
        if options.layers:
            from flatlm.generative.layer_errors import layer_errors_on_text

            errors = layer_errors_on_text(file, cell.model.checkpoint, documents, lora=cell.model.lora, tokenizer=cell.model.tokenizer)
            save_result(file, "layers", errors.to_dict())
    if options.tasks is not None:
        from flatlm.generative.harness.tasks import run_tasks

        results = run_tasks(file, options.tasks, tokenizer=cell.model.tokenizer, checkpoint=cell.model.checkpoint)
        found |= results.to_evaluation()
    return found


def _evaluate_text(cell: Cell, options: EvaluateOptions, documents: Sequence[str], file: Path) -> Mapping[str, Any]:
    from flatlm.generative.evaluation.evaluate import EvaluationRequest, default_stride, evaluate
    from flatlm.generative.model_file import read_model_file

    stride = options.stride
    if stride is None and options.text is not None:
        stride = default_stride(options.text, options.context or read_model_file(file).cache_length)
    request = EvaluationRequest(
        file,
        documents,
        cell.model.checkpoint,
        cell.model.lora,
        tokenizer=cell.model.tokenizer,
        context=options.context,
        stride=stride,
        max_tokens=options.max_tokens,
    )
    if options.greedy_prompts is not None:
        request = replace(request, greedy_prompts=options.greedy_prompts)
    return evaluate(request).to_dict()


def benchmark_cell(cell: Cell, file: Path, target: str) -> Mapping[str, Any]:
    """A target's entry of the file's `benchmark`. Raises FlatlmErrors."""
    from flatlm.generative.benchmarking.record import BenchmarkRequest
    from flatlm.generative.targets.open import open_target

    options = cell.benchmark
    assert options is not None
    runner = options.runner if target.startswith("adb") else None
    request = BenchmarkRequest(
        file, options.prefill, options.decode, options.depths, options.runs, options.warmup, options.threads, options.weight_cache, runner
    )
    machine = open_target(target, ssh_options=options.ssh_options, remote_python=options.remote_python)
    return machine.benchmark(request).to_dict()


@dataclass(frozen=True)
class Steps:
    """Functions of a module, so that another process finds them by name."""

    export: Callable[[Cell, Path], None] = export_cell
    evaluate: Callable[[Cell, Path], Mapping[str, Any]] = evaluate_cell
    benchmark: Callable[[Cell, Path, str], Mapping[str, Any]] = benchmark_cell


def build(job: Job, steps: Steps) -> None:
    """Export and evaluate, as far as that is pending. What became of each step is in `cell.json`, errors too."""
    remove_leftovers(job)
    record = CellRecord.read(job)
    record.drop_stale()
    pending = record.pending
    if EXPORT in pending:

        def export() -> dict[str, int]:
            job.folder.mkdir(parents=True, exist_ok=True)
            steps.export(job.cell, job.file)
            return {"bytes": job.file.stat().st_size}

        if not _attempt(record, EXPORT, export):
            return
    if EVALUATE in pending:

        def evaluate() -> dict[str, Any]:
            save_evaluation(job.file, steps.evaluate(job.cell, job.file))
            return {}

        _attempt(record, EVALUATE, evaluate)
    remove_file_if_done(record)


def measure(job: Job, steps: Steps) -> None:
    """The pending benchmarks, target by target, where there is a file."""
    record = CellRecord.read(job)
    record.drop_stale()
    pending = record.pending
    if EXPORT in pending:
        return
    for target in job.cell.targets:
        if BENCHMARK + target in pending:

            def benchmark(target: str = target) -> dict[str, Any]:
                record.put_benchmark(target, steps.benchmark(job.cell, job.file, target))
                return {}

            _attempt(record, BENCHMARK + target, benchmark)
    remove_file_if_done(record)


def remove_file_if_done(record: CellRecord) -> None:
    """What is not to be kept goes once all is known; a failed cell's file stays, for the next try."""
    if not record.job.cell.keep_file and record.state == "done":
        record.job.file.unlink(missing_ok=True)


def remove_leftovers(job: Job) -> None:
    """Temporary files of a process that was killed: nobody else writes in a cell's folder."""
    for path in job.folder.glob(".*.partial*"):
        path.unlink(missing_ok=True)


def fault(error: Exception) -> str:
    """In one line, of what nobody foresaw."""
    said = (str(error).strip().splitlines() or [""])[-1]
    return f"{type(error).__name__}: {said}"


def _attempt(record: CellRecord, step: str, work: Callable[[], Mapping[str, Any]]) -> bool:
    """Do a step, timed; its failure is recorded, and goes no further."""
    start = time.perf_counter()
    record.begin(step)
    try:
        facts = work()
    except (FlatlmError, VerificationFailed) as error:
        verification = getattr(error, "report", None)
        record.fail(step, str(error), time.perf_counter() - start, **({"verification": verification} if verification else {}))
        return False
    except Exception as error:
        traceback.print_exc()
        where = f"{record.job.folder.name}/{LOG_NAME}"
        record.fail(step, f"{fault(error)} ({where} has where)", time.perf_counter() - start)
        return False
    record.finish(step, time.perf_counter() - start, **facts)
    return True
