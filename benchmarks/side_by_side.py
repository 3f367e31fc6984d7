"""Prefill and decode of several exported files, interleaved in one process: LiteRT's CompiledModel, KV buffers bound in place.

    python benchmarks/side_by_side.py A.tflite B.tflite ... [--rounds 5] [--decode 24] [--threads 2]

Any file with signatures `prefill*` and `decode` whose caches are inputs and outputs of the same names, also other exporters'.
Prints a Markdown table of medians; ratios are to the first file.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, HardwareAccelerator, Options


class File:
    def __init__(self, path: Path, threads: int, cache: Path) -> None:
        cpu = CpuOptions(num_threads=threads, xnnpack_weight_cache_path=str(cache / f"{path.name}.cache"))
        options = Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=cpu)
        self.name = path.name
        self.model = CompiledModel.from_file(str(path), options=options)
        signatures = self.model.get_signature_list()
        prefills = {
            name: self.model.get_input_tensor_details(name)["tokens"]["shape"][-1] for name in signatures if name.startswith("prefill")
        }
        self.prefill = max(prefills, key=lambda name: prefills[name])
        self.tokens = int(prefills[self.prefill])
        self.caches = {
            n: self.model.create_input_buffer_by_name("decode", n) for n in signatures["decode"]["inputs"] if n.startswith("kv_cache")
        }
        self.bound = {name: self._bind(name, signatures[name]) for name in (self.prefill, "decode")}

    def _bind(self, name: str, signature: dict[str, list[str]]) -> tuple[dict[str, Any], dict[str, Any]]:
        inputs = {n: self.caches.get(n) or self.model.create_input_buffer_by_name(name, n) for n in signature["inputs"]}
        outputs = {n: self.caches.get(n) or self.model.create_output_buffer_by_name(name, n) for n in signature["outputs"]}
        return inputs, outputs

    def run(self, name: str, position: int, count: int) -> float:
        inputs, outputs = self.bound[name]
        details = self.model.get_input_tensor_details(name)
        for key in inputs.keys() - self.caches.keys():
            shape = details[key]["shape"]
            if key == "input_pos":
                value = np.arange(position, position + count, dtype=np.int32)
            elif key == "tokens":
                value = np.full(shape, 5, np.int32)
            else:  # a causal mask as an input
                rows = np.arange(position, position + count)[:, None]
                value = np.where(np.arange(shape[-1])[None, :] <= rows, 0.0, -1e9).astype(np.float32).reshape(shape)
            inputs[key].write(np.ascontiguousarray(value))
        start = time.perf_counter()
        self.model.run_by_name(name, inputs, outputs)
        if "logits" in outputs:
            outputs["logits"].read(1, np.float32)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--decode", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        files = [File(path, args.threads, Path(cache)) for path in args.files]
        prefill: dict[str, list[float]] = {file.name: [] for file in files}
        decode: dict[str, list[float]] = {file.name: [] for file in files}
        for round_number in range(args.rounds + 1):
            for file in files:
                seconds = file.run(file.prefill, 0, file.tokens)
                steps = [file.run("decode", file.tokens + step, 1) for step in range(args.decode)]
                if round_number:  # the first warms up
                    prefill[file.name].append(seconds)
                    decode[file.name].append(statistics.median(steps))
    print("| file | prefill, s (min to max) | ratio | decode, ms/token (min to max) | ratio |\n| --- | --- | --- | --- | --- |")
    first = files[0].name
    for file in files:
        a, b = prefill[file.name], decode[file.name]
        ratio_a = statistics.median(x / y for x, y in zip(a, prefill[first], strict=True))
        ratio_b = statistics.median(x / y for x, y in zip(b, decode[first], strict=True))
        print(f"| {file.name} ({file.tokens}) | {statistics.median(a):.2f} ({min(a):.2f} to {max(a):.2f}) | {ratio_a:.2f} ", end="")
        print(f"| {1e3 * statistics.median(b):.1f} ({1e3 * min(b):.1f} to {1e3 * max(b):.1f}) | {ratio_b:.2f} |")


if __name__ == "__main__":
    main()
