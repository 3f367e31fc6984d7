"""flatlm generate FILE --prompt TEXT, or generate -p CHECKPOINT --prompt TEXT"""

import argparse
import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flatlm.commands import base, sampling_options
from flatlm.errors import ExportError, RuntimeFileError, TokenizerError
from flatlm.generative.encoder_decoders import generate as encoder_decoders
from flatlm.generative.encoder_decoders.file import KIND as ENCODER_DECODER
from flatlm.generative.encoder_decoders.runner import EncoderDecoderRunner
from flatlm.generative.file_content import INFILLING, read_content
from flatlm.generative.file_tokenizer import file_tokenizer
from flatlm.generative.generate import Generation, Piece, generate, joined, stream
from flatlm.generative.generation_config import GenerationConfig, Grammar
from flatlm.generative.infilling.fill import Context, fill
from flatlm.generative.infilling.runner import InfillingRunner
from flatlm.generative.speculation import VERIFY_LENGTH, counts_of, describe_counts, open_runner, recorded_counts
from flatlm.utilities.reading import AS_IT_SAYS
from flatlm.utilities.recipe_file import find_recipe
from flatlm.utilities.tokenizing.tokenizer import Tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, nargs="?", help="an exported .tflite or .litertlm")
    parser.add_argument("-p", type=Path, dest="checkpoint", metavar="DIR", help="a checkpoint instead, which is exported once and kept")
    parser.add_argument("--recipe", metavar="NAME", help="of that export (dynamic_int8)")
    base.add_reading_arguments(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the text to go on with, or to fill: [MASK], [sMASK], [gMASK]")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="stop after so many tokens (of each blank)")
    sampling_options.add_arguments(parser)
    parser.add_argument("--logprobs", type=int, metavar="K", help="with --json: how probable each token was, and the K likeliest")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json-schema", type=Path, metavar="FILE", help="the text is JSON that the schema allows")
    form.add_argument("--regex", metavar="TEXT", help="the text matches this regular expression")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="directory with the tokenizer (a .litertlm has its own)")
    parser.add_argument(
        "--output-tokenizer", type=Path, metavar="FILE", help="what is written in, where a model reads another alphabet (--tokenizer's)"
    )
    parser.add_argument("--draft", type=Path, metavar="FILE", help="an exported smaller model of the same tokens, which guesses ahead")
    parser.add_argument("--threads", type=int, help="threads to run with (all cores)")


def run(args: argparse.Namespace) -> int:
    config = _config(args)
    tokenizer = _settle_file(args)
    kind = read_content(args.file).kind
    if args.draft is not None and kind in (ENCODER_DECODER, INFILLING):
        raise RuntimeFileError(f"--draft goes with models that write on, and {args.file} is of the kind {kind}")
    if kind == ENCODER_DECODER:
        return _rewrite(args, tokenizer, config)
    if args.output_tokenizer is not None:
        raise TokenizerError(f"--output-tokenizer is for models that read one text and write another; {args.file} is of another kind")
    if kind == INFILLING:
        return _fill(args, tokenizer, config)
    with open_runner(args.file, args.draft, threads=args.threads) as runner:
        prompt_ids = tokenizer.encode(args.prompt)
        if args.json:
            answer = _plain(generate(runner, tokenizer, prompt_ids, config))
            base.print_json(answer | recorded_counts(runner))
            return 0
        sys.stdout.write(args.prompt)
        _print(stream(runner, tokenizer, prompt_ids, config))
        if (counts := counts_of(runner)) is not None:
            print(describe_counts(counts), file=sys.stderr)
    return 0


def _config(args: argparse.Namespace) -> GenerationConfig:
    """What the arguments ask for. Raises RuntimeFileError."""
    grammar = None if args.regex is None else Grammar("regex", args.regex)
    if args.json_schema is not None:
        try:
            grammar = Grammar("json_schema", args.json_schema.read_text("utf-8"))
        except UnicodeDecodeError as error:
            raise RuntimeFileError(f"{args.json_schema} is not UTF-8 text: {error}; --json-schema takes a JSON schema") from error
    if args.logprobs is not None and not args.json:
        raise RuntimeFileError("--logprobs K goes with --json, where they are told")
    return sampling_options.config_of(args, grammar=grammar)


def _plain(result: Generation) -> dict[str, Any]:
    """An answer as JSON: "logprobs" only where they were asked for, and bytes as numbers."""
    found = dataclasses.asdict(result)
    told = found.pop("logprobs")
    if told is None:
        return found
    keys = ("token_id", "text", "logprob")
    each = [{**one, "bytes": list(one["bytes"]), "top": [{key: other[key] for key in keys} for other in one["top"]]} for one in told]
    return {**found, "logprobs": each}


def _settle_file(args: argparse.Namespace) -> Tokenizer:
    """Let `args.file` be what is to be run: the file given, or the checkpoint's, exported now or taken from the cache. Its tokenizer."""
    reading = base.reading_of(args)
    if (args.file is None) == (args.checkpoint is None):
        raise RuntimeFileError("give one of two: an exported file, or a checkpoint with -p DIR")
    if args.file is not None:
        if args.recipe is not None or reading != AS_IT_SAYS:
            raise ExportError(f"{args.file} is exported already: --recipe, --custom and the like go with a checkpoint, -p DIR")
        return file_tokenizer(args.file, args.tokenizer)
    from flatlm.generative.export_cache import cached_export
    from flatlm.utilities.exporter import ExportRequest

    recipe, verify_length = find_recipe(args.recipe or "dynamic_int8"), None if args.draft is None else VERIFY_LENGTH
    request = ExportRequest(args.checkpoint, args.checkpoint, recipe, reading=reading, verify_length=verify_length)
    with base.progress_bar() as progress:
        args.file = cached_export(request, progress=progress)
    return Tokenizer.load(args.tokenizer or args.checkpoint)


def _fill(args: argparse.Namespace, tokenizer: Tokenizer, config: GenerationConfig) -> int:
    """Fill the prompt's blanks: `text` is the prompt with them filled, `token_ids` what was made, `spans` each blank's own."""
    context = Context.of(tokenizer, args.prompt)
    if context.added:
        print(f"the prompt has no mask to fill: {context.added} was put at its end", file=sys.stderr)
    with InfillingRunner.open(args.file, threads=args.threads) as runner:
        result = fill(runner, tokenizer, context, config)
    if args.json:
        base.print_json(dataclasses.asdict(result))
    else:
        print(result.text)
    return 0


def _rewrite(args: argparse.Namespace, tokenizer: Tokenizer, config: GenerationConfig) -> int:
    """By an encoder with a decoder: the prompt is read, and what is written is another text."""
    written = tokenizer if args.output_tokenizer is None else Tokenizer.load(args.output_tokenizer)
    others = sorted({path.name for path in tokenizer.source.parent.glob("tokenizer_*.json")} - {"tokenizer_config.json"})
    if args.output_tokenizer is None and others:
        print(f"flatlm generate: beside {tokenizer.source} lies {', '.join(others)}: --output-tokenizer FILE writes in it", file=sys.stderr)
    with EncoderDecoderRunner.open(args.file, threads=args.threads) as runner:
        ids = tokenizer.encode(args.prompt)
        answer = encoder_decoders.stream(runner, written, ids, config)
        if args.json:
            base.print_json(_plain(joined(answer, ids)))
        else:
            _print(answer)
    return 0


def _print(pieces: Iterable[Piece]) -> None:
    """As they come."""
    for piece in pieces:
        sys.stdout.write(piece.text)
        sys.stdout.flush()
    print()
