"""flatlm generate FILE --prompt TEXT"""

import argparse
import dataclasses
import sys
from pathlib import Path

from flatlm.commands import base
from flatlm.generative.file_tokenizer import file_tokenizer
from flatlm.generative.generate import generate, stream
from flatlm.generative.infilling.fill import Context, fill
from flatlm.generative.infilling.runner import InfillingRunner
from flatlm.generative.inspect import read_manifest
from flatlm.generative.model_file import INFILLING
from flatlm.generative.runner import Runner
from flatlm.generative.sampling import Sampler
from flatlm.utilities.tokenizer import Tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="an exported .tflite or .litertlm")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the text to go on with, or to fill: [MASK], [sMASK], [gMASK]")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="stop after so many tokens (of each blank)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the most likely token")
    parser.add_argument("--top-k", type=int, help="choose among the k most likely tokens")
    parser.add_argument("--top-p", type=float, help="choose among the most likely tokens that make up this probability")
    parser.add_argument("--seed", type=int, help="for the same text again")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="directory with the tokenizer (a .litertlm has its own)")
    parser.add_argument("--threads", type=int, help="threads to run with (all cores)")


def run(args: argparse.Namespace) -> int:
    sampler = Sampler(args.temperature, args.top_k, args.top_p, args.seed)
    tokenizer = file_tokenizer(args.file, args.tokenizer)
    if read_manifest(args.file).get("kind") == INFILLING:
        return _fill(args, tokenizer, sampler)
    with Runner.open(args.file, threads=args.threads) as runner:
        prompt_ids = tokenizer.encode(args.prompt)
        if args.json:
            result = generate(runner, tokenizer, prompt_ids, max_new_tokens=args.max_new_tokens, sampler=sampler)
            base.print_json(dataclasses.asdict(result))
            return 0
        sys.stdout.write(args.prompt)
        for piece in stream(runner, tokenizer, prompt_ids, max_new_tokens=args.max_new_tokens, sampler=sampler):
            sys.stdout.write(piece.text)
            sys.stdout.flush()
        print()
    return 0


def _fill(args: argparse.Namespace, tokenizer: Tokenizer, sampler: Sampler) -> int:
    """Fill the prompt's blanks: `text` is the prompt with them filled, `token_ids` what was made, `spans` each blank's own."""
    context = Context.of(tokenizer, args.prompt)
    if context.added:
        print(f"the prompt has no mask to fill: {context.added} was put at its end", file=sys.stderr)
    with InfillingRunner.open(args.file, threads=args.threads) as runner:
        result = fill(runner, tokenizer, context, max_new_tokens=args.max_new_tokens, sampler=sampler)
    if args.json:
        base.print_json(dataclasses.asdict(result))
    else:
        print(result.text)
    return 0
