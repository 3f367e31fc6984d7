"""What all verbs share: a parser with --json and --debug, errors as one line, progress on a terminal."""

import argparse
import contextlib
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from flatlm.errors import FlatlmError, VerificationFailed
from flatlm.progress import Progress
from flatlm.utilities.reading import Reading


class Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def run_verb(verb: str, summary: str, arguments: list[str]) -> int:
    """Parse and run one verb. Its module has `add_arguments(parser)` and `run(args) -> int`."""
    module = importlib.import_module(f"flatlm.commands.{verb}")
    parser = Parser(prog=f"flatlm {verb}", description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    module.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(arguments)
    _settle_checkpoint(parser, args)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        status: int = module.run(args)
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (FlatlmError, VerificationFailed) as error:
        if args.debug:
            raise
        print(f"flatlm {verb}: {error}", file=sys.stderr)
        return 1 if isinstance(error, VerificationFailed) else 2
    except OSError as error:
        if args.debug:
            raise
        print(f"flatlm {verb}: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"flatlm {verb}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        cause = str(error).strip().splitlines() or [""]
        print(
            f"flatlm {verb}: a fault in FlatLM, {type(error).__name__}: {cause[-1]}; --debug shows where. Please report it", file=sys.stderr
        )
        return 3


def print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, default=_plain))


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def comma_separated_lengths(text: str) -> tuple[int, ...]:
    """An argparse type: `128,512`."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 128,512") from None


def add_checkpoint_argument(parser: argparse.ArgumentParser, description: str) -> None:
    """The checkpoint, in its place or after -p; `args.checkpoint` either way."""
    parser.add_argument("checkpoint", type=Path, nargs="?", help=description)
    parser.add_argument("-p", type=Path, dest="checkpoint_option", metavar="DIR", help="the same: another way to give the checkpoint")


def _settle_checkpoint(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exits where `add_checkpoint_argument` was given two checkpoints, or none."""
    if "checkpoint_option" in args:
        if args.checkpoint is not None and args.checkpoint_option is not None:
            parser.error(f"there are two checkpoints, {args.checkpoint} and -p {args.checkpoint_option}: give one")
        args.checkpoint = args.checkpoint or args.checkpoint_option
        if args.checkpoint is None:
            parser.error("the following arguments are required: checkpoint, or -p DIR")


def add_reading_arguments(parser: argparse._ActionsContainer, *, task: bool = True) -> None:
    """How the checkpoint is to be read, where it does not say so itself. `task`: it may be an encoder."""
    parser.add_argument("--model", metavar="FAMILY", help="the model's family (default: as config.json says); flatlm models lists them")
    parser.add_argument(
        "--ignore-config-key", action="append", default=[], metavar="KEY", help="a config.json key that is known not to matter"
    )
    parser.add_argument("--custom", type=Path, metavar="FILE.py", help="code whose __model__ is the model: it is run")
    parser.add_argument(
        "--module-map", type=Path, metavar="FILE.py", help="code whose MODULE_MAP names classes for architectures: it is run"
    )
    if task:
        parser.add_argument("--task", metavar="NAME", help="what an encoder is for (default: as its architecture says)")


def reading_of(args: argparse.Namespace) -> Reading:
    """What `add_reading_arguments` say."""
    return Reading(args.model, tuple(args.ignore_config_key), args.custom, args.module_map, args.task)


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A callback (stage, done, in all) that draws a bar on a terminal, and nothing into a pipe."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    terminal = os.fdopen(os.dup(sys.stderr.fileno()), "w")  # a handle of its own: the converter's chatter is kept off the usual one
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with terminal, Progress(*columns, console=Console(file=terminal), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=None)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield update


def table(headers: list[str], rows: list[list[str]]) -> str:
    """Columns of text, aligned, without borders."""
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [headers, *rows])


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"
