"""flatlm sweep SWEEP.yaml"""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flatlm.commands import base

if TYPE_CHECKING:
    from flatlm.generative.sweeping.summary import CellSummary
    from flatlm.generative.sweeping.sweep import SweepReport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", type=Path, help="a YAML file of models, recipes, lengths and targets (docs/sweep.md)")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="where results go (the sweep file's name without its suffix)")
    parser.add_argument("--jobs", type=_positive, metavar="N", help="cells at a time (1; with --ray one for each node)")
    parser.add_argument("--ray", metavar="ADDRESS", help="export and evaluate on a Ray cluster: auto, local, HOST:PORT or ray://HOST:PORT")


def run(args: argparse.Namespace) -> int:
    from flatlm.generative.sweeping.plan import read_sweep

    sweep = read_sweep(args.sweep)
    directory = args.output or args.sweep.with_suffix("")
    from flatlm.generative.sweeping.sweep import LocalPool, run_sweep

    with base.progress_bar() as progress:
        if args.ray is None:
            report = run_sweep(sweep, directory, pool=LocalPool(args.jobs or 1), progress=progress)
        else:
            from flatlm.generative.sweeping.ray_cluster import RayPool

            quiet = contextlib.redirect_stdout(sys.stderr)  # Ray prints what becomes of its workers
            with quiet, RayPool(args.ray, directory, sweep.inputs, jobs=args.jobs) as pool:
                report = run_sweep(sweep, directory, pool=pool, progress=progress)
    if args.json:
        base.print_json(report.to_dict())
    else:
        print(describe(report))
    return 1 if report.failed else 0


def describe(report: "SweepReport") -> str:
    several = len({speed.target for cell in report.cells for speed in cell.speeds}) > 1
    asked = list(dict.fromkeys((score.task, score.metric) for cell in report.cells for score in cell.scores))
    headers = [
        "model",
        "recipe",
        "prefill",
        "cache",
        *(["target"] if several else []),
        "MB",
        "KL",
        "perplexity",
        *(f"{task} {metric}" for task, metric in asked),
        "prefill/s",
        "decode/s",
        "",
    ]
    rows = []
    for cell in report.cells:
        scores = {(score.task, score.metric): f"{score.score:.4g}" for score in cell.scores}
        for speed in cell.speeds or (None,):
            rows.append(
                [
                    cell.model,
                    cell.recipe,
                    ",".join(name.removeprefix("prefill_") for name in cell.signatures if name != "decode"),
                    _cache(cell),
                    *([speed.target if speed else ""] if several else []),
                    "" if cell.bytes is None else f"{cell.bytes / 1e6:,.2f}",
                    "" if cell.mean_kl is None else f"{cell.mean_kl:.3g}",
                    "" if cell.perplexity is None else f"{cell.perplexity:.4g}",
                    *(scores.get(column, "") for column in asked),
                    _rate(speed.prefill_tokens_per_second if speed else None),
                    _rate(speed.decode_tokens_per_second if speed else None),
                    cell.state,
                ]
            )
    errors = [f"{cell.name}: {cell.error}" for cell in report.failed]
    done = len(report.cells) - len(report.failed)
    ending = f"{done} of {len(report.cells)} cells are done, in {report.directory}"
    again = "; started again, the sweep goes on with the others" if errors else ""
    return "\n".join([base.table(headers, rows), "", *errors, ending + again])


def _cache(cell: "CellSummary") -> str:
    length = "" if cell.kv_cache_len is None else str(cell.kv_cache_len)
    return length if cell.kv_cache_dtype == "float32" else f"{length} {cell.kv_cache_dtype}".strip()


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value
