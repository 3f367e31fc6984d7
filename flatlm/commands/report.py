"""flatlm report DIR -o report.html"""

import argparse
import dataclasses
from pathlib import Path

from flatlm.commands import base


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder of exported files and the results beside them")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="a page (.html), or Markdown and its plots (.md)")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write the plots there too, as PNG")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="measure the error of each layer of the files made from it first")
    parser.add_argument("--text", type=Path, metavar="FILE", help="for --checkpoint: text (.txt, .json, .jsonl); default: a story")
    parser.add_argument("--tokens", type=int, default=128, metavar="N", help="for --checkpoint: tokens of the text to read")


def run(args: argparse.Namespace) -> int:
    from flatlm.generative.reporting.report import report

    measured = []
    if args.checkpoint is not None:
        from flatlm.generative.reporting.measure_layers import measure_layers

        with base.progress_bar() as progress:
            measured = measure_layers(args.folder, args.checkpoint, text=args.text, tokens=args.tokens, progress=progress)
    written = report(args.folder, args.output, plots=args.plots)
    if args.json:
        base.print_json(dataclasses.asdict(written) | {"layers_measured": measured})
        return 0
    for path in measured:
        print(f"measured the error of each layer: {path}")
    print(f"{written.output}: {written.files} files; {', '.join(written.sections)}")
    for path in written.plots:
        print(path)
    return 0
