"""flatlm verify FILE CHECKPOINT"""

import argparse
from pathlib import Path

from flatlm.commands import base
from flatlm.generative.prove import describe_verification
from flatlm.generative.verify import DEFAULT_TOKENS, verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="an exported .tflite or .litertlm")
    base.add_checkpoint_argument(parser, "the checkpoint that it came from")
    parser.add_argument("--lora", type=Path, metavar="DIR", help="the LoRA adapter that was merged into it")
    base.add_reading_arguments(parser)
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="a text to begin with; may be given several times")
    parser.add_argument("--tokens", type=int, default=DEFAULT_TOKENS, metavar="N", help="compare at least so many tokens")
    parser.add_argument("--against", choices=("transformers", "eager"), help="the reference (transformers, where installed)")


def run(args: argparse.Namespace) -> int:
    with base.progress_bar() as progress:
        report = verify(
            args.file,
            args.checkpoint,
            lora=args.lora,
            reading=base.reading_of(args),
            prompts=args.prompt,
            tokens=args.tokens,
            against=args.against,
            progress=progress,
        )
    if args.json:
        base.print_json(report.to_dict())
    else:
        judged = "nothing promised by its recipe" if report.bound.measured_only else "passed" if report.passed else "FAILED"
        print(f"{describe_verification(report.to_dict())}: {judged}")
    return 0 if report.passed else 1
