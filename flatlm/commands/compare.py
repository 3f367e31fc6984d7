"""flatlm compare A B ..."""

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from flatlm.commands import base
from flatlm.convert.atomic_file import atomic_output
from flatlm.errors import OutputError, RuntimeFileError
from flatlm.generative.benchmarking.record import Measure
from flatlm.generative.benchmarking.tables import rounded
from flatlm.generative.comparison.compare import (
    DEFAULT_DECODE,
    DEFAULT_PREFILL,
    DEFAULT_ROUNDS,
    FRESH_S,
    MOST_TIMES,
    CompareRequest,
    compare,
)
from flatlm.generative.comparison.ratios import LEAST_ROUNDS, Ratio
from flatlm.generative.comparison.record import MEASURES, Comparison
from flatlm.generative.comparison.subject import Subject, name_subjects
from flatlm.progress import Progress
from flatlm.utilities.recipe_file import find_recipe
from flatlm.utilities.results import COMPARISON_SUFFIX

_HEADERS = {
    "prefill_tokens_per_second": "prefill, tokens/s",
    "decode_tokens_per_second": "decode, tokens/s",
    "time_to_first_token_s": "first token, ms",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="a .tflite or .litertlm, whichever tool made it, or a .gguf")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="export this checkpoint by --recipes, and compare those files too")
    parser.add_argument("--recipes", metavar="NAME,...", help="quantization recipes, or recipe.json files")
    parser.add_argument("--prefill", type=int, metavar="N", help="tokens of the prompt (the longest that all files read at once, else 128)")
    parser.add_argument("--decode", type=int, metavar="N", help="tokens to decode (64)")
    parser.add_argument(
        "--depths", type=base.comma_separated_lengths, default=(0,), metavar="N,...", help="tokens in the context before the prompt"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=DEFAULT_ROUNDS,
        help=f"in each, every file has two turns in a fresh process, A B B A (%(default)s; intervals need {LEAST_ROUNDS}); "
        f"where one takes {FRESH_S:g} s to load, one process of each serves all rounds",
    )
    parser.add_argument(
        "--until", type=_part, metavar="5%", help=f"more rounds, up to {MOST_TIMES} times as many, until the intervals are that narrow"
    )
    parser.add_argument("--threads", type=int, help="threads to run with (all cores)")
    parser.add_argument("--llama-cpp-python", type=Path, metavar="PYTHON", help="an interpreter that has llama-cpp-python (this one)")
    parser.add_argument("--save", type=Path, metavar="NAME", help=f"write what was found to NAME{COMPARISON_SUFFIX}, for flatlm report")
    parser.add_argument("--format", choices=("table", "markdown"), default="table", help="how to print it")


def run(args: argparse.Namespace) -> int:
    if (args.checkpoint is None) != (args.recipes is None):
        raise RuntimeFileError("--checkpoint and --recipes go together: what to export, and how")
    if args.save is not None:
        _require_place(args.save)
    with ExitStack() as stack:
        progress = stack.enter_context(base.progress_bar())
        subjects = list(name_subjects(args.files))
        if args.checkpoint is not None:
            subjects += _exported(args, Path(stack.enter_context(tempfile.TemporaryDirectory())), progress)
        request = CompareRequest(
            tuple(subjects),
            args.prefill,
            args.decode,
            args.depths,
            args.rounds,
            args.until,
            args.threads,
            args.llama_cpp_python,
        )
        found = compare(request, progress)
    if args.json:
        base.print_json(found.to_dict())
    else:
        print(describe(found, markdown=args.format == "markdown"))
    if args.save is not None:
        import json

        with atomic_output(args.save.with_name(args.save.name + COMPARISON_SUFFIX)) as temporary:
            temporary.write_text(json.dumps(found.to_dict(), indent=2) + "\n", "utf-8")
    return 0


def _require_place(path: Path) -> None:
    """Before anything is measured."""
    if not path.name or not path.parent.is_dir():
        raise OutputError(f"--save {path}: give a name in a folder that exists; {COMPARISON_SUFFIX} is added to it")


def _exported(args: argparse.Namespace, place: Path, progress: Progress) -> list[Subject]:
    """A file for each recipe, not verified, in a context that has room for what is asked."""
    from flatlm.utilities.exporter import ExportRequest, export
    from flatlm.utilities.kinds.lengths import DEFAULT_CACHE_LENGTH

    recipes = {name: find_recipe(name) for name in dict.fromkeys(args.recipes.split(","))}
    prefill = None if args.prefill is None else (args.prefill,)
    needed = max(args.depths) + (args.prefill or DEFAULT_PREFILL) + 1 + (args.decode or DEFAULT_DECODE)
    subjects = []
    for number, (name, recipe) in enumerate(recipes.items()):
        progress("exports", number, len(recipes))
        output = place / f"{number}-{recipe.name}.tflite"
        length = needed if needed > DEFAULT_CACHE_LENGTH else None
        export(ExportRequest(args.checkpoint, output, recipe, prefill, length))
        subjects.append(Subject(name, output))
    return subjects


def describe(found: Comparison, *, markdown: bool = False) -> str:
    deep = len(found.subjects[0].depths) > 1
    headers = ["", *(["depth"] if deep else []), *(cell for name in MEASURES for cell in (_HEADERS[name], "ratio")), "load, s", "peak, MB"]
    rows = [
        [
            subject.name,
            *([str(speeds.depth)] if deep else []),
            *(
                cell
                for name in MEASURES
                for cell in (_median(name, getattr(speeds, name)), _ratio(found.ratio(subject.name, name, speeds.depth)))
            ),
            f"{subject.load_s.median:.2f}",
            f"{subject.peak_rss_bytes / 1e6:,.0f}",
        ]
        for subject in found.subjects
        for speeds in subject.depths
    ]
    ratios = [item.ratio for item in found.ratios]
    lines = [
        _markdown(headers, rows) if markdown else base.table(headers, rows),
        "",
        f"a prompt of {found.prefill_tokens} tokens, then {found.decode_tokens} decoded; {found.threads} threads; medians of "
        f"{_span([ratio.rounds for ratio in ratios])} rounds by turns; {found.machine.cpu}, {found.machine.cores} cores",
        f"ratios to {found.subjects[0].name}, with 95 % intervals of their medians over the rounds",
    ]
    if any(ratio.low is None for ratio in ratios):
        lines.append(f"fewer than {LEAST_ROUNDS} rounds tell no interval: ask for more with --rounds")
    if any(ratio.low is not None and not ratio.distinguishable for ratio in ratios):
        lines.append("(=) cannot be told from 1 by these rounds")
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"the machine was not quiet: {reason}" for reason in found.noise]
    return "\n".join(lines)


def _median(name: str, measure: Measure) -> str:
    return rounded(measure.median * (1e3 if name.endswith("_s") else 1))


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "1"
    if ratio.low is None or ratio.high is None:
        return f"{ratio.median:.3f}"
    return f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})" + ("" if ratio.distinguishable else " (=)")


def _span(values: Sequence[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def _markdown(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _part(text: str) -> float:
    """An argparse type: 5% as 0.05."""
    try:
        value = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a part such as 5%")
    return value
