"""flatlm benchmark FILE"""

import argparse
from pathlib import Path

from flatlm.commands import base
from flatlm.generative.benchmark import BenchmarkReport, Measure, benchmark


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="an exported .tflite or .litertlm")
    parser.add_argument("--prefill", type=int, metavar="N", help="tokens of the prompt (128, or half the cache)")
    parser.add_argument("--decode", type=int, metavar="N", help="tokens to decode (64)")
    parser.add_argument("--runs", type=int, default=5, help="counted runs, after one warm-up")
    parser.add_argument("--threads", type=int, help="threads to run with (all cores)")
    parser.add_argument("--target", default="local", choices=("local",), help="where to run")


def run(args: argparse.Namespace) -> int:
    report = benchmark(args.file, prefill=args.prefill, decode=args.decode, runs=args.runs, threads=args.threads)
    if args.json:
        base.print_json(report.to_dict())
    else:
        print(describe(report))
    return 0


def describe(report: BenchmarkReport) -> str:
    def spread(measure: Measure, unit: str) -> list[str]:
        return [f"{_rounded(measure.median)} {unit}", _rounded(measure.minimum), _rounded(measure.maximum)]

    rows = [
        [f"prefill ({report.prefill_tokens} tokens)", *spread(report.prefill_tokens_per_second, "tokens/s")],
        [f"decode ({report.decode_tokens} tokens)", *spread(report.decode_tokens_per_second, "tokens/s")],
        ["time to first token", *spread(report.time_to_first_token_s, "s")],
    ]
    head = base.table(["", f"median of {report.prefill_tokens_per_second.runs}", "min", "max"], rows)
    return f"{head}\nload {report.load_s:.2f} s, peak memory {base.megabytes(report.peak_rss_bytes)}, {report.threads} threads"


def _rounded(value: float) -> str:
    """Three figures, and no powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
