"""What judging a file costs: perplexity through prefill signatures against stepping decode, and what keeping a reference saves and misses.

    python -m benchmarks.evaluation CHECKPOINT TEXT WORK_DIR [--recipe dynamic_int8] [--prefill 256] [--tokens 4000]

Exports the checkpoint with and without logits from prefill; both files read the same tokens, by turns. Without a tokenizer of its own the
checkpoint is not judged against a reference: random tokens are read. Prints Markdown rows.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from flatlm.errors import TokenizerError
from flatlm.generative.evaluation.evaluate import EvaluationRequest, evaluate
from flatlm.generative.evaluation.scoring import RunningFile, chunk_length, score_windows
from flatlm.generative.runner import Runner
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.documents import Piece, read_documents, windows
from flatlm.utilities.exporter import ExportRequest, export
from flatlm.utilities.tokenizing.tokenizer import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--recipe", default="dynamic_int8")
    parser.add_argument("--prefill", type=int, default=256)
    parser.add_argument("--kv-cache-len", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    files = {}
    for logits in (True, False):
        files[logits] = args.work / f"evaluation_{args.recipe}_{logits}.tflite"
        export(
            ExportRequest(
                args.checkpoint, files[logits], get_recipe(args.recipe), (args.prefill,), args.kv_cache_len, prefill_logits=logits
            )
        )
    with Runner.open(files[True]) as runner:
        vocabulary = runner.vocab_size
    pieces = _pieces(args, vocabulary)
    seconds = {logits: list[float]() for logits in files}
    for _ in range(args.rounds):
        for logits, file in files.items():
            with Runner.open(file) as runner:
                subject, chunk = RunningFile(runner), chunk_length(runner)
                subject.feed(pieces[0].ids[:2])
                start = time.perf_counter()
                score_windows(subject, pieces, chunk=chunk)
                seconds[logits].append(time.perf_counter() - start)
    tokens = sum(piece.scored for piece in pieces)
    ratios = [slow / fast for fast, slow in zip(seconds[True], seconds[False], strict=True)]
    print(
        "| model | tokens | through prefill, tokens/s | stepping decode, tokens/s | ratio (min to max) |\n| --- | --- | --- | --- | --- |"
    )
    print(
        f"| {args.checkpoint.name}, {args.recipe}, prefill_{args.prefill} | {tokens} | {tokens / statistics.median(seconds[True]):,.0f} "
        f"| {tokens / statistics.median(seconds[False]):,.0f} | {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) |"
    )
    _reference(args, files[True])


def _pieces(args: argparse.Namespace, vocabulary: int) -> list[Piece]:
    try:
        tokenizer = Tokenizer.load(args.checkpoint)
        texts = [tokenizer.encode(text) for text in read_documents(args.text)]
    except TokenizerError:
        texts = [np.random.default_rng(0).integers(0, vocabulary, args.tokens + 1).tolist()]
    found, left = list[Piece](), args.tokens
    for ids in texts:
        for piece in windows(ids, args.kv_cache_len, None if len(texts) > 1 else args.kv_cache_len - 1):
            if left > 0:
                found.append(piece)
                left -= piece.scored
    return found


def _reference(args: argparse.Namespace, file: Path) -> None:
    """The same evaluation twice: the reference runs, then it is known."""
    try:
        Tokenizer.load(args.checkpoint)
    except TokenizerError:
        return
    place = args.work / "references"
    request = EvaluationRequest(file, read_documents(args.text), args.checkpoint, max_tokens=args.tokens, work=place, reference_cache=place)
    for name in ("reference run", "reference known"):
        start = time.perf_counter()
        report = evaluate(request)
        took = time.perf_counter() - start
        assert report.divergence is not None
        kept = report.kept_reference
        more = (
            ""
            if kept is None
            else f", missed {kept.mean_kl_missed:.1e} by {kept.top} tokens a distribution, at most {kept.mean_kl_most:.2e}"
        )
        print(f"{name}: {took:.1f} s, mean KL {report.divergence.mean_kl:.6f}{more}")
    size = sum(path.stat().st_size for path in place.rglob("records"))
    print(f"kept: {size / 1e6:.2f} MB for {report.tokens} tokens")


if __name__ == "__main__":
    main()
