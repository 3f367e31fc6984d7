"""flatlm benchmark FILE"""

import argparse
import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flatlm.commands import base
from flatlm.errors import RuntimeFileError
from flatlm.generative.benchmarking.record import BenchmarkRecord, BenchmarkRequest, Measure
from flatlm.generative.benchmarking.tables import as_csv, as_markdown, rounded
from flatlm.generative.targets.open import FORMS, open_target
from flatlm.utilities.results import read_json_result, result_path, save_result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    lengths = base.comma_separated_lengths
    parser.add_argument("file", type=Path, help="an exported .tflite or .litertlm")
    parser.add_argument("--prefill", type=int, metavar="N", help="tokens of the prompt (128, or half the cache)")
    parser.add_argument("--decode", type=int, metavar="N", help="tokens to decode (64)")
    parser.add_argument("--depths", type=lengths, default=(0,), metavar="N,N", help="tokens in the context before the prompt")
    parser.add_argument("--runs", type=int, default=5, help="counted runs at each depth; more of short ones, for 2 s")
    parser.add_argument("--warmup", type=int, default=1, help="runs before them, at least; 0: none")
    parser.add_argument("--threads", type=lengths, default=(None,), metavar="N,N", help="threads to run with, each in turn (all cores)")
    parser.add_argument("--no-weight-cache", action="store_true", help="pack the weights once for each signature, not once for all")
    parser.add_argument("--target", default="local", metavar="TARGET", help=f"where to run: {FORMS}")
    parser.add_argument("--runner", type=Path, metavar="PATH", help="for adb: LiteRT's or LiteRT-LM's benchmark program for the device")
    parser.add_argument("--ssh-option", action="append", default=[], metavar="KEY=VALUE", help="for ssh: a setting as in ssh_config")
    parser.add_argument("--remote-python", default="python3", metavar="PATH", help="for ssh: the Python to use there")
    parser.add_argument("--save", action="store_true", help="keep the figures beside the file, as FILE.benchmark.json")
    parser.add_argument("--format", default="table", choices=("table", "csv", "markdown"), help="how to print them")


def run(args: argparse.Namespace) -> int:
    request = BenchmarkRequest(
        args.file, args.prefill, args.decode, args.depths, args.runs, args.warmup, weight_cache=not args.no_weight_cache, runner=args.runner
    )
    target = open_target(args.target, ssh_options=args.ssh_option, remote_python=args.remote_python)
    records: list[BenchmarkRecord] = []
    old = kept(args.file) if args.save else []
    with base.progress_bar() as progress, contextlib.ExitStack() as stack:
        if isinstance(target, contextlib.AbstractContextManager):
            stack.enter_context(target)  # what it copies serves all thread counts
        for threads in dict.fromkeys(args.threads):
            records.append(target.benchmark(replace(request, threads=threads), progress))
            if args.save:
                save(args.file, old, records)
    if args.json:
        several = {"records": [record.to_dict() for record in records]} if len(records) > 1 else {}
        base.print_json(records[0].to_dict() | several)
    elif args.format == "table":
        print("\n\n".join(map(describe, records)))
    else:
        print({"csv": as_csv, "markdown": as_markdown}[args.format](records), end="")
    return 0


def kept(file: Path) -> list[dict[str, Any]]:
    """What was measured of this content of the file before. RuntimeFileError where what lies beside it is something else."""
    path = result_path(file, "benchmark")
    found = read_json_result(path) if path.exists() else []
    try:
        size = file.stat().st_size
        return [record for record in found if _setting(record) and record["file_bytes"] == size]
    except (TypeError, KeyError):
        raise RuntimeFileError(f"{path} is not a list of benchmark records, to which --save could add: move it away") from None


def save(file: Path, old: list[dict[str, Any]], records: list[BenchmarkRecord]) -> None:
    """Beside the file, with what was measured before on other targets, thread counts and caches."""
    new = [record.to_dict() for record in records]
    save_result(file, "benchmark", [*(item for item in old if _setting(item) not in map(_setting, new)), *new])


def _setting(record: Mapping[str, Any]) -> tuple[object, ...]:
    return record["target"], record["threads"], record["weight_cache"]


def describe(record: BenchmarkRecord) -> str:
    """What was measured, as lines for a terminal."""

    def row(name: str, measure: Measure | None, unit: str) -> list[list[str]]:
        return [[name, f"{rounded(measure.median)} {unit}", rounded(measure.minimum), rounded(measure.maximum)]] if measure else []

    rows: list[list[str]] = []
    for speeds in record.depths:
        after = f" after {speeds.depth}" if speeds.depth else ""
        rows += row(f"prefill ({record.prefill_tokens} tokens{after})", speeds.prefill_tokens_per_second, "tokens/s")
        rows += row(f"decode ({record.decode_tokens} tokens{after})", speeds.decode_tokens_per_second, "tokens/s")
    rows += row("time to first token", record.time_to_first_token_s, "s")
    runs = next((measure.runs for measure in (record.prefill_tokens_per_second, record.decode_tokens_per_second) if measure), 1)
    facts = [f"load {record.load_s.median:.2f} s"] if record.load_s else []
    facts += [f"peak memory {base.megabytes(record.peak_rss_bytes)}"] if record.peak_rss_bytes else []
    facts += [f"{rounded(record.energy_j_per_token.median)} J a token decoded"] if record.energy_j_per_token else []
    facts += [f"{record.threads} threads" if record.threads != 1 else "1 thread", *([] if record.weight_cache else ["no weight cache"])]
    machine = record.machine
    where = [machine.cpu, f"{machine.cores} cores" if machine.cores else "", machine.system, machine.runtime]
    lines = [] if record.target == "local" else [f"{record.target}: {', '.join(filter(None, where))}"]
    lines += [base.table(["", f"median of {runs}", "min", "max"], rows), ", ".join(facts)]
    return "\n".join(lines + ([f"the machine was not quiet: {'; '.join(record.noise)}"] if record.noise else []))
