"""What smaller KV caches cost and save: float32, float16 and int8 side by side.

    python -m benchmarks.kv_cache [--context 4096] [--layers 4] [--rounds 9]

Speed and memory: random weights of a 1B model's shape with few layers, dynamic_int8; the files take turns as in `flatlm compare`. Quality:
the demo model in float32, on text it never saw, each token read by `decode`, or all of them by a prefill. Prints Markdown tables.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.random_checkpoint import write_checkpoint
from flatlm.generative.comparison.compare import DEFAULT_ROUNDS, CompareRequest, compare
from flatlm.generative.comparison.ratios import Ratio
from flatlm.generative.comparison.subject import name_subjects
from flatlm.generative.evaluation.evaluate import EvaluationRequest, evaluate
from flatlm.generative.model_file import read_model_file
from flatlm.layers.config import CacheDtype
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.exporter import ExportRequest, export

ASSETS = Path(__file__).parents[1] / "flatlm" / "assets"
PREFILL = 128
SHAPES = {
    "Llama 3.2 1B: 8 KV heads of 64, 32 query heads": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
    },
    "Qwen3 1.7B: 8 KV heads of 128, 16 query heads": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=DEFAULT_ROUNDS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        print("| shape | cache | its size, MB | decode, ms/token (min) | ratio | prefill of 128, ms (min) | ratio | peak memory, MB |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
        for name, shape in SHAPES.items():
            _speed(Path(place), name, shape, args)
        print("\n| cache | mean KL, decode | top-1 agreement | mean KL, prefill | top-1 agreement |\n| --- | --- | --- | --- | --- |")
        for dtype in CacheDtype:
            _quality(Path(place), dtype)


def _speed(place: Path, name: str, shape: dict[str, int], args: argparse.Namespace) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "rms_norm_eps": 1e-5, "rope_theta": 1e4}
    config |= {"max_position_embeddings": args.context, "tie_word_embeddings": True, "num_hidden_layers": args.layers, **shape}
    write_checkpoint(place / "checkpoint", config)
    files = {dtype: place / f"{dtype}.tflite" for dtype in CacheDtype}
    for dtype, file in files.items():
        export(ExportRequest(place / "checkpoint", file, get_recipe("dynamic_int8"), (PREFILL,), args.context, kv_cache_dtype=dtype))
    found = compare(CompareRequest(name_subjects(list(files.values())), PREFILL, rounds=args.rounds))
    for (dtype, file), subject in zip(files.items(), found.subjects, strict=True):
        caches = read_model_file(file).decode.caches.values()
        size = sum(spec.dtype.itemsize * int(np.prod(spec.shape)) for spec in caches)
        row = [name, str(dtype), f"{size / 1e6:.1f}"]
        for measure, tokens in (("decode_tokens_per_second", 1), ("prefill_tokens_per_second", PREFILL)):
            speed, ratio = getattr(subject.depths[0], measure), found.ratio(subject.name, measure, 0)
            row += [f"{1e3 * tokens / speed.median:.2f} ({1e3 * tokens / speed.maximum:.2f})", _inverse(ratio)]
        print(f"| {' | '.join([*row, f'{subject.peak_rss_bytes / 1e6:.0f}'])} |", flush=True)
    for reason in (*found.notes, *found.noise):
        print(reason, file=sys.stderr)


def _inverse(ratio: Ratio | None) -> str:
    """Of times, from that of speeds."""
    if ratio is None:
        return "1"
    interval = f" ({1 / ratio.high:.2f} to {1 / ratio.low:.2f})" if ratio.low and ratio.high else ""
    return f"{1 / ratio.median:.2f}{interval}"


def _quality(place: Path, dtype: CacheDtype) -> None:
    texts = json.loads((ASSETS / "demo_text" / "held_out.json").read_text("utf-8"))
    row = [str(dtype)]
    for logits in (False, True):
        file = place / "demo.tflite"
        request = ExportRequest(ASSETS / "demo_model", file, get_recipe("none"), (64,), 512, prefill_logits=logits, kv_cache_dtype=dtype)
        export(request)
        report = evaluate(EvaluationRequest(file, texts, ASSETS / "demo_model", max_tokens=4000, reference_top=0)).divergence
        row += [f"{report.mean_kl:.1e}", f"{report.top1_agreement:.4f}"]
    print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
