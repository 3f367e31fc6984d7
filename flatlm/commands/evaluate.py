"""flatlm evaluate FILE"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from flatlm.commands import base
from flatlm.errors import TextError
from flatlm.generative.evaluation.evaluate import GREEDY_PROMPTS, EvaluationReport, EvaluationRequest, evaluate
from flatlm.generative.evaluation.reference_cache import TOP
from flatlm.generative.model_file import ModelFile, read_model_file
from flatlm.utilities.documents import read_documents
from flatlm.utilities.results import save_result

OWN_TEXT = Path(__file__).parents[1] / "assets" / "demo_text" / "held_out.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="an exported .tflite or .litertlm")
    text = parser.add_argument_group("text")
    text.add_argument("--text", type=Path, metavar="FILE", help="what is to be foretold: .txt, or a .json or .jsonl list of documents")
    text.add_argument("--tokenizer", type=Path, metavar="DIR", help="directory with the tokenizer (a .litertlm has its own)")
    text.add_argument("--context", type=int, metavar="C", help="tokens of a window (the file's context)")
    text.add_argument(
        "--stride",
        type=int,
        metavar="S",
        help="tokens from one window to the next (of a .txt half the context; of documents none: each is cut at the context)",
    )
    text.add_argument("--max-tokens", type=int, metavar="N", help="stop when so many have been foretold")
    reference = parser.add_argument_group("reference")
    reference.add_argument("--checkpoint", type=Path, metavar="DIR", help="compare with the checkpoint on the same tokens")
    reference.add_argument("--lora", type=Path, metavar="DIR", help="the LoRA adapter that was merged into the file")
    reference.add_argument("--against", choices=("transformers", "eager"), help="the reference (transformers, where installed)")
    reference.add_argument("--greedy-prompts", type=int, default=GREEDY_PROMPTS, metavar="N", help="beginnings to continue greedily")
    reference.add_argument("--reference-cache", type=Path, metavar="DIR", help="where what the reference says is kept (the user's cache)")
    reference.add_argument("--reference-top", type=int, default=TOP, metavar="K", help="tokens kept of each distribution; 0 keeps nothing")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where it is saved as it goes (the user's cache)")
    parser.add_argument("--save", action="store_true", help="write FILE.evaluation.json, for flatlm report")


def run(args: argparse.Namespace) -> int:
    report = evaluate_text(args)
    if args.save:
        save_result(args.file, "evaluation", report.to_dict())
    if args.json:
        base.print_json(report.to_dict())
    else:
        print(describe(report))
    return 0


def evaluate_text(args: argparse.Namespace) -> EvaluationReport:
    if args.text is None and args.checkpoint is None:
        raise TextError("there is nothing to evaluate: give --text FILE, --checkpoint DIR or --tasks NAMES")
    text = args.text or OWN_TEXT
    request = EvaluationRequest(
        args.file,
        read_documents(text),
        args.checkpoint,
        args.lora,
        args.against,
        args.tokenizer,
        args.context,
        args.stride,
        args.max_tokens,
        args.greedy_prompts,
        args.work,
        args.reference_cache,
        args.reference_top,
    )
    model = read_model_file(args.file)
    if text.suffix == ".txt" and args.stride is None:
        request = replace(request, stride=max(1, (args.context or model.cache_length) // 2))
    _say_how_to_be_faster(model)
    with base.progress_bar() as progress:
        return evaluate(request, progress=progress)


def _say_how_to_be_faster(model: ModelFile) -> None:
    if not any("logits" in spec.outputs for spec in model.prefill):
        print(
            f"note: {model.path} is read one token at a time, as its prefill signatures return no logits; exported with --prefill-logits "
            "it is evaluated many times faster",
            file=sys.stderr,
        )


def describe(report: EvaluationReport) -> str:
    how = "each document's first window" if report.stride is None else f"stride {report.stride}"
    lines = [
        f"perplexity {report.perplexity:.4f}, {report.nll_per_token:.5f} nats a token"
        + (f", {report.bits_per_byte:.4f} bits a byte" if report.bits_per_byte is not None else ""),
        f"{report.tokens:,} tokens of {report.documents} documents; context {report.context}, {how}",
    ]
    if report.cut_documents:
        lines.append(f"{report.cut_documents} documents were cut at {report.context} tokens: --stride N reads them whole")
    if (found := report.divergence) is not None:
        lines += [
            f"against {report.against}, whose perplexity is {found.reference_perplexity:.4f}:",
            f"  perplexity ratio {found.perplexity_ratio:.5f}, standard error {found.perplexity_ratio_standard_error:.5f}",
            f"  KL mean {found.mean_kl:.3g}, median {found.median_kl:.3g}, 99 % below {found.p99_kl:.3g}, max {found.max_kl:.3g} nats",
            f"  the likeliest token is the same for {found.top1_agreement:.2%}, among the first five for {found.top5_agreement:.2%}",
        ]
    if (greedy := report.greedy) is not None:
        lines.append(
            f"  greedy texts of {greedy.prompts} prompts: {greedy.equal_to_the_end} equal for all {greedy.tokens} tokens; "
            f"the median parts after {greedy.median_first_divergence:g}"
        )
    if (kept := report.kept_reference) is not None:
        missed = "" if kept.mean_kl_missed is None else f" (the file before missed {kept.mean_kl_missed:.1e} by that)"
        lines.append(
            f"  {kept.tokens:,} tokens were compared with what was kept of the reference, {kept.top} tokens a distribution: the mean KL is "
            f"a little more, at most {kept.mean_kl_most:.3g}{missed}; --reference-top 0 runs it again"
        )
    return "\n".join(lines)
