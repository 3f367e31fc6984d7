"""How answers are written, for the verbs that write."""

import argparse
import dataclasses
from typing import Any

from flatlm.generative.generation_config import GenerationConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Named as the fields of `GenerationConfig`."""
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the most likely token")
    parser.add_argument("--top-k", type=int, help="choose among the k most likely tokens")
    parser.add_argument("--top-p", type=float, help="choose among the most likely tokens that make up this probability")
    parser.add_argument("--min-p", type=float, help="choose among tokens with this part of the likeliest one's probability")
    parser.add_argument("--seed", type=int, help="for the same text again")
    parser.add_argument("--presence-penalty", type=float, default=0.0, metavar="X", help="off the logits of tokens made already (-2 to 2)")
    parser.add_argument("--frequency-penalty", type=float, default=0.0, metavar="X", help="off them for each time (-2 to 2)")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="X", help="divides those of tokens read or made already")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends the text before it (repeatable)")


def config_of(args: argparse.Namespace, **more: Any) -> GenerationConfig:
    """What the arguments say, those of other functions too where they are fields. Raises RuntimeFileError."""
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(GenerationConfig) if hasattr(args, field.name)}
    return GenerationConfig(**given | {"stop": tuple(args.stop)} | more)
