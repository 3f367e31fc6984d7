"""What ring caches save: Gemma 3 1B's shape with a context of 8192, its windowed layers with rings and with whole caches.

    python -m benchmarks.rings [--context 8192]

Random weights, dynamic_int8; each file is measured by `flatlm benchmark` in a process of its own. Prints a Markdown table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

from benchmarks.random_checkpoint import write_checkpoint
from flatlm.generative.model_file import read_model_file
from flatlm.layers.kv_cache import CacheGeometry
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities import exporter
from tools.published_models import load_published_models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=8192)
    args = parser.parse_args()
    config = next(model.config for model in load_published_models() if model.name == "google/gemma-3-1b-pt")
    print("| caches | KV cache, MB | peak memory of running, MB | decode, ms/token | prefill of 128, s |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as place:
        checkpoint = Path(place) / "checkpoint"
        write_checkpoint(checkpoint, dict(config))
        for name, geometry in (("whole", lambda length, *_: CacheGeometry(length)), ("rings", CacheGeometry)):
            file = Path(place) / f"{name}.tflite"
            with patch.object(exporter, "CacheGeometry", geometry):
                exporter.export(exporter.ExportRequest(checkpoint, file, get_recipe("dynamic_int8"), (128,), args.context))
            cache = sum(4 * spec.shape[1] * spec.shape[2] * spec.shape[3] for spec in read_model_file(file).decode.caches.values())
            command = [str(Path(sys.executable).parent / "flatlm"), "benchmark", str(file), "--prefill", "128", "--decode", "16", "--json"]
            run = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            decode, prefill = 1e3 / run["decode_tokens_per_second"], 128 / run["prefill_tokens_per_second"]
            print(f"| {name} | {cache / 1e6:.0f} | {run['peak_rss_bytes'] / 1e6:.0f} | {decode:.1f} | {prefill:.2f} |", flush=True)


if __name__ == "__main__":
    main()
