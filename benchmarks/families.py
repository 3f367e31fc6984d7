"""Does a family's graph cost export time? 8 G parameters, 32 layers, equal widths, in the way of Llama, Qwen3, Gemma 3 and Mixtral.

    python -m benchmarks.families WORK_DIR [--runs 2] [--layers 32] [--only llama,gemma3] [--recipe dynamic_int8]

The checkpoints are written to WORK_DIR (16 GB of bfloat16 each; names and shapes from transformers' own classes) and exported by turns,
each time dropped from the page cache first, in whole processes: prefill_128 and decode, KV 1024, no verification. Prints a Markdown table,
ratios to its first row.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.export import measure
from benchmarks.large import drop_from_page_cache
from benchmarks.random_checkpoint import write_checkpoint

BASE = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    "gemma3": {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "sliding_window": 512},
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "intermediate_size": 1792,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--only", default=",".join(SHAPES))
    parser.add_argument("--recipe", default="dynamic_int8")
    args = parser.parse_args()
    print("| family | G parameters | wall s (each run) | s per G parameters | ratio | peak memory, GB |")
    print("| --- " * 6 + "|")
    names = args.only.split(",")
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    parameters = {}
    with tempfile.TemporaryDirectory(dir=args.work) as place:
        out = Path(place) / "model.tflite"
        for name in names:
            parameters[name] = write_checkpoint(Path(place) / name, {**BASE, "num_hidden_layers": args.layers, **SHAPES[name]})
        for _ in range(args.runs):
            for name in names:
                drop_from_page_cache([Path(place) / name / "model.safetensors"])
                flatlm = [str(Path(sys.executable).parent / "flatlm"), "export", str(Path(place) / name), "-o", str(out), "--no-verify"]
                figures[name].append(measure([*flatlm, "--recipe", args.recipe, "--prefill", "128", "--kv-cache-len", "1024"]))
                out.unlink()
    rates = {name: statistics.median(wall for wall, _ in figures[name]) / parameters[name] * 1e9 for name in names}
    for name in names:
        each = ", ".join(f"{wall:.1f}" for wall, _ in figures[name])
        peak = max(peak for _, peak in figures[name]) / 1e9
        ratio = rates[name] / rates[names[0]]
        print(f"| {name} | {parameters[name] / 1e9:.2f} | {each} | {rates[name]:.2f} | {ratio:.2f} | {peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
