"""What smaller KV caches cost and save: float32, float16 and int8 side by side.

    python -m benchmarks.kv_cache [--context 4096] [--layers 4] [--rounds 12]

Speed and memory: random weights of a 1B model's shape with few layers, dynamic_int8. The files are open in one process and take turns, so
that a slow moment of the machine meets all of them; memory is that of a process for each, by `flatlm benchmark`. Quality: the demo model
in float32, on text it never saw, each token read by `decode`, or all of them by a prefill. Prints Markdown tables.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.random_checkpoint import write_checkpoint
from flatlm.generative.evaluation.evaluate import EvaluationRequest, evaluate
from flatlm.generative.model_file import read_model_file
from flatlm.generative.runner import Runner
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
    parser.add_argument("--rounds", type=int, default=12)
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
    decode, prefill = _by_turns(files, args.rounds)
    for dtype, file in files.items():
        caches = read_model_file(file).decode.caches.values()
        size = sum(spec.dtype.itemsize * int(np.prod(spec.shape)) for spec in caches)
        row = [name, str(dtype), f"{size / 1e6:.1f}"]
        for times in (decode, prefill):
            mine = times[dtype]
            row += [f"{1e3 * np.median(mine):.2f} ({1e3 * mine.min():.2f})", f"{np.median(mine / times[CacheDtype.FLOAT32]):.2f}"]
        print(f"| {' | '.join([*row, f'{_peak(file) / 1e6:.0f}'])} |", flush=True)


def _by_turns(files: dict[CacheDtype, Path], rounds: int) -> tuple[dict[CacheDtype, np.ndarray], dict[CacheDtype, np.ndarray]]:
    """Seconds of a decode step, and of a prefill, of each file; a round gives every file one prefill and 8 steps."""
    runners = {dtype: Runner.open(file) for dtype, file in files.items()}
    decode, prefill = ({dtype: list[float]() for dtype in files} for _ in range(2))
    for number in range(rounds + 1):
        for dtype, runner in runners.items():
            runner.reset()
            took = _seconds(lambda runner=runner: runner.prefill([7] * PREFILL))  # type: ignore[misc]
            prefill[dtype] += [took] if number else []  # the first round warms up
        for token in range(8):
            for dtype, runner in runners.items():
                took = _seconds(lambda runner=runner, token=token: runner.step(token))  # type: ignore[misc]
                decode[dtype] += [took] if number else []
    for runner in runners.values():
        runner.close()
    return tuple({dtype: np.array(times) for dtype, times in found.items()} for found in (decode, prefill))  # type: ignore[return-value]


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _peak(file: Path) -> int:
    command = [str(Path(sys.executable).parent / "flatlm"), "benchmark", str(file), "--prefill", "128", "--decode", "8", "--runs", "1"]
    reply = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    peak: int = reply["peak_rss_bytes"]
    return peak


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
