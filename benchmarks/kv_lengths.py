"""What several KV lengths in one file gain at the beginning of a text: it moves on to longer caches as it grows.

    python -m benchmarks.kv_lengths [--lengths 512,2048,8192] [--depths 0,1000,6000] [--rounds 5]

Random weights of SmolLM2 135M's shape (30 layers, 3 key/value heads of 64; 8,192 positions), dynamic_int8: a file with all lengths beside
one with the longest alone, taking turns as in `flatlm compare`. Prints Markdown tables.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.random_checkpoint import write_checkpoint
from flatlm.commands.base import comma_separated_lengths
from flatlm.generative.comparison.compare import CompareRequest, compare
from flatlm.generative.comparison.ratios import Ratio
from flatlm.generative.comparison.subject import name_subjects
from flatlm.generative.runner import Runner
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.exporter import ExportRequest, export

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
PREFILL = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=comma_separated_lengths, default=(512, 2048, 8192))
    parser.add_argument("--depths", type=comma_separated_lengths, default=(0, 1000, 6000))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        checkpoint = Path(place) / "checkpoint"
        write_checkpoint(checkpoint, CONFIG)
        files = {"longest alone": Path(place) / "one.tflite", "all lengths": Path(place) / "several.tflite"}
        for file, lengths in zip(files.values(), (max(args.lengths), args.lengths), strict=True):
            report = export(ExportRequest(checkpoint, file, get_recipe("dynamic_int8"), (PREFILL,), lengths))
            print(f"{file.name}: {report.bytes / 1e6:.1f} MB, compiled in {report.seconds['compile']:.1f} s", file=sys.stderr)
        found = compare(CompareRequest(name_subjects(list(files.values())), PREFILL, depths=args.depths, rounds=args.rounds))
        print("| tokens in the context | file | decode, tokens/s | ratio | prefill of 128, tokens/s | ratio |")
        print("| --- | --- | --- | --- | --- | --- |")
        for i, depth in enumerate(args.depths):
            for (name, _), subject in zip(files.items(), found.subjects, strict=True):
                row = [f"{depth:,}", name]
                for measure in ("decode_tokens_per_second", "prefill_tokens_per_second"):
                    speed = getattr(subject.depths[i], measure).median
                    row += [f"{speed:,.1f}", _interval(found.ratio(subject.name, measure, depth))]
                print(f"| {' | '.join(row)} |", flush=True)
        for reason in (*found.notes, *found.noise):
            print(reason, file=sys.stderr)
        _moves(files["all lengths"])


def _interval(ratio: Ratio | None) -> str:
    return "1" if ratio is None else f"{ratio.median:.2f}" + (f" ({ratio.low:.2f} to {ratio.high:.2f})" if ratio.low and ratio.high else "")


def _moves(file: Path) -> None:
    """What the steps cost on which a text moves on."""
    with Runner.open(file) as runner:
        ids = np.random.default_rng(0).integers(0, runner.vocab_size, runner.cache_length).tolist()
        print("\n| from | to | caches afterwards, MB | the step, ms | steps before it, ms |\n| --- | --- | --- | --- | --- |")
        for length, longer in zip(runner.kv_lengths, runner.kv_lengths[1:], strict=False):
            runner.reset()
            runner.prefill(ids[: length - 20])
            times = []
            for token in ids[length - 20 : length + 1]:
                began = time.perf_counter()
                runner.step(token)
                times.append(1e3 * (time.perf_counter() - began))
            print(f"| {length:,} | {longer:,} | {runner.cache_bytes / 1e6:.0f} | {times[-1]:.0f} | {np.median(times[:-1]):.1f} |")


if __name__ == "__main__":
    main()
