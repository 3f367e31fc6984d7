"""flatlm tune CHECKPOINT -o OUT --max-size 700MB"""

import argparse
import dataclasses
import re
from typing import TYPE_CHECKING

from flatlm.commands import base, export
from flatlm.errors import FlatlmError
from flatlm.generative.prove import prover
from flatlm.quantize.recipes import get_recipe

if TYPE_CHECKING:
    from flatlm.generative.tune import TuneReport

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
ROWS_SHOWN = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    export.add_export_arguments(parser)
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--max-size", type=_bytes, metavar="SIZE", help="the file's size at most, such as 700MB: the least KL within it")
    budget.add_argument("--max-kl", type=_positive, metavar="KL", help="the KL at most, in nats: the smallest file within it")
    budget.add_argument("--bits", type=_positive, metavar="BITS", help="bits a weight at most, scales included: the least KL within them")
    parser.add_argument("--schemes", metavar="NAME,...", help="choose from these (dynamic_int8,dynamic_int4_block32,dynamic_int4_channel)")
    parser.add_argument("--plot", choices=("svg", "png"), default="svg", help="the picture of the front; needs matplotlib")


def run(args: argparse.Namespace) -> int:
    from flatlm.generative import tune
    from flatlm.generative.reporting import front_plot
    from flatlm.utilities.tuning.units import SEARCHED

    schemes = tuple(args.schemes.split(",")) if args.schemes else SEARCHED
    budget = tune.Budget(args.max_size, args.max_kl, args.bits)
    with base.progress_bar() as progress:
        request = export.request_of(args, args.output, get_recipe("none"))
        prove = None if args.no_verify else prover(request, tokens=args.verify_tokens, progress=progress)
        report = tune.tune(request, budget, schemes=schemes, prove=prove, progress=progress)
    picture = report.recipe_file.with_name(f"front.{args.plot}")
    try:
        front_plot.plot_front(picture, report.front, report.candidates, report.best)
        drawn = str(picture)
    except FlatlmError as error:
        drawn = f"not drawn: {error}"
    if args.json:
        base.print_json(
            {
                "budget": str(budget),
                "best": report.best.to_dict(),
                "recipe": report.recipe_file,
                "candidates": [candidate.to_dict() for candidate in report.candidates],
                "front": [{"weight_bytes": choice.size, "predicted_kl": choice.cost} for choice in report.front],
                "plot": drawn,
                "export": dataclasses.asdict(report.export),
            }
        )
    else:
        print(describe(report, str(budget), drawn))
    return 0


def describe(report: "TuneReport", budget: str, drawn: str) -> str:
    step = max(1, -(-len(report.front) // ROWS_SHOWN))
    shown = [*report.front[::step], *([report.front[-1]] if (len(report.front) - 1) % step else [])]
    points = [[f"{choice.size / 1e6:.3f}", f"{choice.cost:.5f}", _mix(choice.schemes)] for choice in shown]
    measured = [
        [
            f"{candidate.file_bytes / 1e6:.3f}",
            "" if candidate.predicted_kl is None else f"{candidate.predicted_kl:.5f}",
            f"{candidate.mean_kl:.5f}",
            f"{candidate.perplexity:.4g}",
            f"{candidate.top1_agreement:.4f}",
            candidate.recipe.summary.removeprefix("found by flatlm tune: ") + (" <- chosen" if candidate is report.best else ""),
        ]
        for candidate in sorted(report.candidates, key=lambda candidate: candidate.file_bytes)
    ]
    return "\n".join(
        [
            f"Pareto front, {len(report.front)} recipes, predicted:",
            base.table(["weights, MB", "KL", "units by scheme"], points),
            "",
            "exported files, on text kept out of the calibration:",
            base.table(["file, MB", "predicted KL", "KL", "perplexity", "top-1", "recipe"], measured),
            "",
            f"budget: {budget}; recipe: {report.recipe_file}; front: {drawn}",
            export.describe(report.export),
        ]
    )


def _mix(schemes: "dict[str, str] | object") -> str:
    assert isinstance(schemes, dict)
    names = list(schemes.values())
    return ", ".join(f"{names.count(name)} {name.removeprefix('dynamic_')}" for name in dict.fromkeys(sorted(names)))


def _bytes(text: str) -> int:
    """An argparse type: 700MB, 1.5GiB, or a number of bytes."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 700MB or 1.5GiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
