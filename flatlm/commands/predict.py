"""flatlm predict FILE --text TEXT"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from flatlm.commands import base
from flatlm.errors import RuntimeFileError
from flatlm.tasks.classifying import Classification, Match
from flatlm.tasks.embedding import Embedding
from flatlm.tasks.labeling import Labeling
from flatlm.tasks.masked import Filled
from flatlm.tasks.runner import open_task
from flatlm.tasks.writing import Written

OPTIONS = {"pair": "--text-pair", "truncate": "--truncate", "top": "--top", "positive": "--positive"}
OPTIONS |= {"whole_words": "--whole-words", "prompt": "--prompt", "max_new_tokens": "--max-new-tokens"}
"""What a task's `predict` may take, and how the command line calls it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="an exported .tflite or .litertlm")
    parser.add_argument("--text", action="append", required=True, metavar="TEXT", help="the text; may be given several times")
    parser.add_argument("--task", metavar="NAME", help="what is to be done (default: what the file was exported for)")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="directory with the tokenizer (a .litertlm has its own)")
    parser.add_argument("--output-tokenizer", type=Path, metavar="FILE", help="that of what is written, where it is another")
    parser.add_argument("--threads", type=int, help="threads to run with (all cores)")
    own = parser.add_argument_group("of some tasks")
    own.add_argument("--text-pair", dest="pair", metavar="TEXT", help="a second text, to be compared with each")
    own.add_argument("--truncate", action="store_true", default=None, help="cut texts that are longer than the file reads")
    own.add_argument("--top", type=int, metavar="N", help="candidates for each mask (5)")
    own.add_argument("--positive", metavar="LABEL", help="the label that says that two texts match (the second of two)")
    own.add_argument("--whole-words", action="store_true", default=None, help="all tokens of a word have the label of its first")
    own.add_argument("--prompt", metavar="TEXT", help="what is around a text that is written about, with {text} in its place")
    own.add_argument("--max-new-tokens", type=int, metavar="N", help="stop writing after so many tokens (128)")


def run(args: argparse.Namespace) -> int:
    given = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
    more = {"tokenizer": args.tokenizer, "output_tokenizer": args.output_tokenizer, "threads": args.threads}
    with open_task(args.file, task=args.task, **more) as runner:
        for name in given:
            if name not in runner.options:
                taken = ", ".join(OPTIONS[own] for own in runner.options if own in OPTIONS)
                raise RuntimeFileError(f"{OPTIONS[name]}: the task {runner.task.name} does not take it; it takes {taken}")
        found = [runner.predict(text, **given) for text in args.text]
        if args.json:
            predictions = [{"input": text, **dataclasses.asdict(each)} for text, each in zip(args.text, found, strict=True)]
            base.print_json({"task": runner.task.name, "predictions": predictions})
            return 0
        for each in found:
            print("\n".join(_lines(each)))
    return 0


def _lines(found: Any) -> list[str]:
    """A record as lines to read: what it says first, then the parts of it."""
    match found:
        case Written():
            return [found.text if found.filled is None else found.filled]
        case Filled():
            each = [f"  {place.start}: " + ", ".join(f"{c.token} {c.probability:.4f}" for c in place.candidates) for place in found.places]
            return [found.text, *each]
        case Embedding():
            shown = ", ".join(f"{number:.4f}" for number in found.vector[:8])
            return [f"{len(found.vector)} dimensions: {shown}{', ...' if len(found.vector) > 8 else ''}", *_similarity(found.similarity)]
        case Classification():
            return [_classification(found)]
        case Match():
            return [f"match {found.probability:.4f} ({found.positive}); {_classification(found.classification)}"]
        case Labeling():
            return [f"{span.start}-{span.end} {span.label}: {span.text}" for span in found.spans] or ["nothing is marked"]
    raise AssertionError(f"no words for a {type(found).__name__}")


def _similarity(value: float | None) -> list[str]:
    return [] if value is None else [f"cosine similarity {value:.4f}"]


def _classification(found: Classification) -> str:
    if found.score is not None:
        return f"{found.label} {found.score:.4f}"
    return ", ".join(f"{label} {value:.4f}" for label, value in sorted(found.probabilities.items(), key=lambda item: -item[1]))
