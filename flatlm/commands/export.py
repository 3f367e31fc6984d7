"""flatlm export CHECKPOINT -o OUT"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flatlm.commands import base
from flatlm.convert.worker import CompilerProcess
from flatlm.errors import VerificationFailed
from flatlm.generative.prove import describe_verification, prover
from flatlm.layers.config import CacheDtype
from flatlm.quantize.recipes import Recipe
from flatlm.utilities.recipe_file import find_recipe

if TYPE_CHECKING:  # what loads torch is imported where it is used, after the compiler's process has been started
    from flatlm.utilities.exporter import ExportReport, ExportRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_argument(parser)
    add_export_arguments(parser)


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """All of them but the recipe."""
    base.add_checkpoint_argument(parser, "directory with config.json, weights and tokenizer, or a .gguf file")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="OUT.tflite or OUT.litertlm; the suffix says the format"
    )
    add_model_arguments(parser)
    parser.add_argument("--no-verify", action="store_true", help="do not run the written file against the reference")
    parser.add_argument("--verify-tokens", type=int, default=None, metavar="N", help="compare at least so many tokens (256)")


def add_recipe_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe", default="dynamic_int8", metavar="NAME", help="quantization recipe (flatlm recipes lists them), or a recipe.json"
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that decide what is in the file, but for the recipe."""
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="text for calibrated recipes: .txt, or a .json or .jsonl of documents"
    )
    parser.add_argument("--prefill", type=base.comma_separated_lengths, metavar="T,...", help="lengths of the prefill signatures (16,128)")
    parser.add_argument(
        "--kv-cache-len",
        type=base.comma_separated_lengths,
        metavar="S,...",
        help="slots of the KV cache (1024, or the model's context if shorter); of several, a text begins in the shortest and moves on",
    )
    parser.add_argument(
        "--kv-cache-dtype",
        choices=[str(dtype) for dtype in CacheDtype],
        default=str(CacheDtype.FLOAT32),
        help="what the KV cache holds: float16 halves it, int8 about quarters it",
    )
    parser.add_argument("--verify-len", type=int, metavar="T", help="a signature that checks T tokens at once, for generate --draft")
    parser.add_argument("--prefill-logits", action="store_true", help="prefill signatures return the logits of every position")
    parser.add_argument("--lora", type=Path, metavar="DIR", help="a LoRA adapter that PEFT saved, to be merged into the weights")
    base.add_reading_arguments(parser)


def request_of(args: argparse.Namespace, output: Path, recipe: Recipe) -> "ExportRequest":
    """What `add_model_arguments` say."""
    from flatlm.utilities.exporter import ExportRequest

    return ExportRequest(
        args.checkpoint,
        output,
        recipe,
        args.prefill,
        one_or_more(args.kv_cache_len),
        args.prefill_logits,
        base.reading_of(args),
        lora=args.lora,
        calibration=args.calibration,
        kv_cache_dtype=args.kv_cache_dtype,
        verify_length=args.verify_len,
    )


def one_or_more(lengths: tuple[int, ...] | None) -> int | tuple[int, ...] | None:
    """A request's `kv_cache_len`."""
    return lengths[0] if lengths and not lengths[1:] else lengths


def run(args: argparse.Namespace) -> int:
    recipe = find_recipe(args.recipe)
    warn(recipe)
    if args.calibration is not None and not recipe.calibrated:
        print(f"warning: recipe {recipe.name} needs no text: --calibration {args.calibration} is not read", file=sys.stderr)
    with CompilerProcess() as compiler:
        request = request_of(args, args.output, recipe)
        return _run(args, request, compiler)


def _run(args: argparse.Namespace, request: "ExportRequest", compiler: CompilerProcess) -> int:
    try:
        report = export_and_verify(request, verify=not args.no_verify, tokens=args.verify_tokens, compiler=compiler)
    except VerificationFailed as failure:
        if args.json:
            base.print_json({"output": None, "verification": getattr(failure, "report", None), "error": str(failure)})
        raise
    if args.json:
        base.print_json(dataclasses.asdict(report))
    else:
        print(describe(report))
    return 0


def warn(recipe: Recipe) -> None:
    if recipe.warning:
        print(f"warning: recipe {recipe.name}: {recipe.warning}", file=sys.stderr)


def export_and_verify(
    request: "ExportRequest", *, verify: bool = True, tokens: int | None = None, compiler: CompilerProcess | None = None
) -> "ExportReport":
    """Export; prove the file before it gets its name. Raises VerificationFailed, with the `report`, where it is too far off."""
    from flatlm.utilities.exporter import export

    with base.progress_bar() as progress:
        prove = prover(request, tokens=tokens, progress=progress) if verify else None
        return export(request, prove=prove, progress=progress, compiler=compiler)


def describe(report: "ExportReport") -> str:
    seconds = sum(report.seconds.values())
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in report.seconds.items() if value >= 0.05)
    context = context_of(report.kv_cache_len, report.kv_cache_dtype, "decode" in report.signatures)
    lines = [
        f"{report.output}: {base.megabytes(report.bytes)}, {report.family} of {report.parameters / 1e6:.1f} M, recipe {report.recipe}",
        f"signatures: {', '.join(report.signatures)}; {context}",
        *([f"of the checkpoint's integers: {report.integers}"] if report.integers else []),
        f"{seconds:.1f} s ({stages})",
        "not verified" if report.verification is None else f"verified: {describe_verification(report.verification)}",
    ]
    return "\n".join(lines)


def context_of(tokens: int, dtype: str, cached: bool) -> str:
    """What is said of the longest text, by whether a KV cache holds it."""
    return f"KV cache of {tokens} slots{of_dtype(dtype)}" if cached else f"texts of up to {tokens} tokens"


def of_dtype(dtype: str) -> str:
    """What is said of a KV cache that is not float32."""
    return "" if dtype == CacheDtype.FLOAT32 else f" of {dtype}"
