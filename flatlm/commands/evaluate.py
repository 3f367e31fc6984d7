"""flatlm evaluate FILE"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatlm.commands import base
from flatlm.errors import RuntimeFileError, TextError
from flatlm.generative.evaluation.evaluate import GREEDY_PROMPTS, EvaluationReport, EvaluationRequest, default_stride, evaluate
from flatlm.generative.evaluation.reference_cache import TOP
from flatlm.generative.harness.request import TaskRequest
from flatlm.generative.harness.tasks import TaskResults, require_tasks, run_tasks
from flatlm.generative.model_file import ModelFile, read_model_file
from flatlm.utilities.documents import OWN_TEXT, read_documents
from flatlm.utilities.results import save_evaluation, save_result

if TYPE_CHECKING:
    from flatlm.generative.layer_errors import LayerErrors


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
    reference.add_argument("-p", "--checkpoint", type=Path, metavar="DIR", help="compare with the checkpoint on the same tokens")
    reference.add_argument("--lora", type=Path, metavar="DIR", help="the LoRA adapter that was merged into the file")
    base.add_reading_arguments(reference)
    reference.add_argument("--against", choices=("transformers", "eager"), help="the reference (transformers, where installed)")
    reference.add_argument("--greedy-prompts", type=int, default=GREEDY_PROMPTS, metavar="N", help="beginnings to continue greedily")
    reference.add_argument("--reference-cache", type=Path, metavar="DIR", help="where what the reference says is kept (the user's cache)")
    reference.add_argument("--reference-top", type=int, default=TOP, metavar="K", help="tokens kept of each distribution; 0 keeps nothing")
    reference.add_argument("--layers", action="store_true", help="the error of each layer too, on the text's first tokens")
    tasks = parser.add_argument_group("tasks")
    tasks.add_argument("--tasks", type=_names, metavar="A,B", help="tasks of lm-evaluation-harness, or groups of them (`lm_eval ls tasks`)")
    tasks.add_argument("--limit", type=_limit, metavar="N", help="questions of each task, or a part of them where below 1 (all)")
    tasks.add_argument("--num-fewshot", type=int, metavar="N", help="examples before each question (the task's own number)")
    tasks.add_argument("--include-path", type=Path, metavar="DIR", help="a folder of your own tasks")
    tasks.add_argument("--apply-chat-template", action="store_true", help="ask in the form of a conversation")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where it is saved as it goes (the user's cache)")
    parser.add_argument("--save", action="store_true", help="write FILE.evaluation.json and FILE.layers.json, for flatlm report")


def run(args: argparse.Namespace) -> int:
    tasks = task_request(args)
    text = None
    if args.text is not None or args.checkpoint is not None:
        text = read_documents(args.text or OWN_TEXT)
    elif tasks is None:
        raise TextError("there is nothing to evaluate: give --text FILE, --checkpoint DIR or --tasks NAMES")
    if args.layers and args.checkpoint is None:
        raise RuntimeFileError("--layers: layers are compared with the checkpoint's, so give --checkpoint DIR too")
    model = read_model_file(args.file)
    model.require_left_to_right()
    if text is not None and tasks is not None:
        require_tasks(tasks)
    _say_how_to_be_faster(model)
    found: dict[str, Any] = {}
    if text is not None:
        report = evaluate_text(args, text, model)
        found |= _told(args, report.to_dict(), describe(report))
    if tasks is not None:
        with base.progress_bar() as progress:
            where = {"tokenizer": args.tokenizer, "checkpoint": args.checkpoint, "work": args.work}
            results = run_tasks(args.file, tasks, **where, progress=progress)
        found |= _told(args, results.to_evaluation(), describe_tasks(results))
    if args.layers and text is not None:
        from flatlm.generative.layer_errors import layer_errors_on_text

        errors = layer_errors_on_text(
            args.file, args.checkpoint, text, lora=args.lora, reading=base.reading_of(args), tokenizer=args.tokenizer
        )
        found["layers"] = errors.to_dict()
        if args.save:
            save_result(args.file, "layers", errors.to_dict())
        if not args.json:
            print(describe_layers(errors))
    if args.json:
        base.print_json(found)
    return 0


def task_request(args: argparse.Namespace) -> TaskRequest | None:
    """None where no task is asked for. Raises TextError for what is about tasks then."""
    if args.tasks is not None:
        return TaskRequest(args.tasks, args.num_fewshot, args.limit, args.include_path, args.apply_chat_template)
    for name in ("num_fewshot", "limit", "include_path", "apply_chat_template"):
        value = getattr(args, name)
        if value is not None and value is not False:
            raise TextError(f"--{name.replace('_', '-')} is about tasks: name them with --tasks A,B")
    return None


def evaluate_text(args: argparse.Namespace, documents: list[str], model: ModelFile) -> EvaluationReport:
    stride = args.stride
    if stride is None and args.text is not None:
        stride = default_stride(args.text, args.context or model.cache_length)
    request = EvaluationRequest(
        args.file,
        documents,
        args.checkpoint,
        args.lora,
        args.against,
        args.tokenizer,
        args.context,
        stride,
        args.max_tokens,
        args.greedy_prompts,
        args.work,
        args.reference_cache,
        args.reference_top,
        reading=base.reading_of(args),
    )
    with base.progress_bar() as progress:
        return evaluate(request, progress=progress)


def _told(args: argparse.Namespace, found: dict[str, Any], description: str) -> dict[str, Any]:
    """Saved and shown as soon as it is known: what comes after it may fail."""
    if args.save:
        save_evaluation(args.file, found)
    if not args.json:
        print(description, flush=True)
    return found


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


def describe_tasks(results: TaskResults) -> str:
    rows = [
        [task, metric, f"{value:.4f}", _error(metrics, metric), str(results.shots.get(task, "")), str(results.samples.get(task, ""))]
        for task, metrics in results.tasks.items()
        for metric, value in metrics.items()
        if not metric.endswith("_stderr")
    ]
    known = f", {results.found:,} of them answered before or asked twice" if results.found else ""
    ending = f"lm_eval {results.lm_eval}: {results.requests:,} requests{known}"
    return "\n".join([base.table(["task", "metric", "score", "standard error", "examples", "questions"], rows), ending])


def _error(metrics: Mapping[str, float], metric: str) -> str:
    error = metrics.get(f"{metric}_stderr")
    return "" if error is None else f"{error:.4f}"


def describe_layers(errors: "LayerErrors") -> str:
    rows = [[str(layer), f"{keys:.3g}", f"{values:.3g}"] for layer, keys, values in errors.layers]
    rows.append(["logits", f"{errors.logits_error:.3g}", ""])
    explained = f"error of each layer over {errors.tokens} tokens, as a part of the root mean square of the checkpoint's values:"
    return "\n".join([explained, base.table(["layer", "keys", "values"], rows)])


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.strip()))


def _limit(text: str) -> int | float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if 0 < value < 1 or (value >= 1 and value.is_integer()):
        return int(value) if value >= 1 else value
    raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number of questions nor a part of them between 0 and 1")
