"""How experts run: all on every token (dense), or in decode only those that the router chose (conditional), behind the runtime's IF.

    python -m benchmarks.mixtures [--tokens 64] [--rounds 3]

Random weights, dynamic_int8, 2 threads; both files hold the same weights and run in turn. Prints a Markdown table.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.random_checkpoint import write_checkpoint
from flatlm.convert import decoder
from flatlm.convert.worker import CompilerHere
from flatlm.generative.runner import Runner
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities.exporter import ExportRequest, export

SHARED = {"vocab_size": 8192, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 1024}
SHAPES: dict[str, dict[str, Any]] = {
    "8 experts of 3584, 2 chosen, 8 layers of 1024": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_size": 1024,
        "intermediate_size": 3584,
        "num_hidden_layers": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "64 experts of 512, 8 chosen, 8 layers of 1024": {
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        "hidden_size": 1024,
        "intermediate_size": 512,
        "num_hidden_layers": 8,
        "num_experts": 64,
        "num_experts_per_tok": 8,
    },
    "128 experts of 256, 8 chosen, 16 layers of 1024": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 1024,
        "intermediate_size": 2048,
        "moe_intermediate_size": 256,
        "num_hidden_layers": 16,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
    },
}


class Here(CompilerHere):
    """Compiles in this process, so that the way experts run can be set."""

    def __init__(self, *, conditional: bool) -> None:
        self._conditional = conditional

    def result(self) -> Any:
        original = decoder._block_steps
        try:
            if not self._conditional:
                decoder._block_steps = lambda *given, conditional: original(*given, conditional=False)
            return super().result()
        finally:
            decoder._block_steps = original


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print("| mixture | M parameters | way | decode, ms/token (min to max) | ratio | prefill of 128, s | load, s | export, s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as place:
            checkpoint = Path(place) / "checkpoint"
            parameters = write_checkpoint(checkpoint, {**SHARED, **shape})
            runners, notes = {}, {}
            for way in ("dense", "conditional"):
                file = Path(place) / f"{way}.tflite"
                request = ExportRequest(checkpoint, file, get_recipe("dynamic_int8"), (128,), 512)
                begun = time.perf_counter()
                export(request, compiler=Here(conditional=way == "conditional"))
                exported = time.perf_counter()
                runners[way] = Runner.open(file, threads=2)
                runners[way].prefill(list(range(128)))
                notes[way] = (exported - begun, time.perf_counter() - exported)
            decode: dict[str, list[float]] = {way: [] for way in runners}
            prefill: dict[str, list[float]] = {way: [] for way in runners}
            for _ in range(args.rounds):
                for way, runner in runners.items():
                    runner.reset()
                    begun = time.perf_counter()
                    runner.prefill(list(range(128)))
                    prefill[way].append(time.perf_counter() - begun)
                    for token in range(args.tokens):
                        begun = time.perf_counter()
                        runner.step(token * 37 % 8192)
                        decode[way].append(1e3 * (time.perf_counter() - begun))
            base = statistics.median(decode["dense"])
            for way, times in decode.items():
                middle, (export_s, load_s) = statistics.median(times), notes[way]
                spread = f"{middle:.1f} ({min(times):.1f} to {max(times):.1f})"
                rest = f"{statistics.median(prefill[way]):.2f} | {load_s:.1f} | {export_s:.1f}"
                print(f"| {name} | {parameters / 1e6:.0f} | {way} | {spread} | {middle / base:.2f} | {rest} |", flush=True)
            for runner in runners.values():
                runner.close()


if __name__ == "__main__":
    main()
