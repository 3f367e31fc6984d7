"""A checkpoint too large for memory: its export against reading it once, quantizing it once and writing the file once, each alone.

    python benchmarks/large.py CHECKPOINT [--recipe dynamic_int4_block32] [--prefill 128] [--kv-cache-len 1024]

Reading: every file by pread, in pieces of 4 MiB, one thread. Quantizing: random bfloat16 in memory through the recipe's main scheme, both
cores, scaled to the checkpoint's size. Writing: zeros, in pieces of 4 MiB, then fsync. Prints a Markdown table.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.export import measure
from flatlm.quantize.encode import encode_stream
from flatlm.quantize.recipes import get_recipe

PIECE = 4 << 20


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read(files: list[Path]) -> None:
    buffer = bytearray(PIECE)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def write(path: Path, size: int) -> None:
    piece = bytes(PIECE)
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, PIECE):
            file.write(piece[: min(PIECE, size - start)])
        os.fsync(file.fileno())
    path.unlink()


def drop_from_page_cache(files: list[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--recipe", default="dynamic_int4_block32")
    parser.add_argument("--prefill", default="128")
    parser.add_argument("--kv-cache-len", default="1024")
    args = parser.parse_args()
    files = sorted(args.checkpoint.glob("*.safetensors"))
    parameters = sum(path.stat().st_size for path in files) // 2
    with tempfile.TemporaryDirectory(dir=args.checkpoint.parent) as work:
        out = Path(work) / "model.tflite"
        command = [str(Path(sys.executable).parent / "flatlm"), "export", str(args.checkpoint), "-o", str(out), "--no-verify"]
        drop_from_page_cache(files)
        wall, peak = measure([*command, "--recipe", args.recipe, "--prefill", args.prefill, "--kv-cache-len", args.kv_cache_len])
        size = out.stat().st_size
        out.unlink()
        drop_from_page_cache(files)
        reading = timed(lambda: read(files))
        scheme = get_recipe(args.recipe).scheme_for("blocks.0.feed_forward.down.weight")
        weight = torch.randn(8192, 8192, dtype=torch.bfloat16)
        encoding = timed(lambda: encode_stream(lambda a, b: weight[a:b], weight.shape, scheme, lambda a, b, e: None))
        encoding *= parameters / weight.numel()
        writing = timed(lambda: write(Path(work) / "zeros", size))
    floor = reading + encoding + writing
    read_bytes = f"{2 * parameters / 1e9:.1f} GB"
    print(f"{args.checkpoint.name}: {parameters / 1e9:.2f} G parameters, {read_bytes} to {args.recipe}, {size / 1e9:.2f} GB\n")
    print("| what | s | rate |\n| --- | --- | --- |")
    print(f"| read the checkpoint once | {reading:.1f} | {2 * parameters / reading / 1e9:.2f} GB/s |")
    print(f"| quantize once, both cores | {encoding:.1f} | {parameters / encoding / 1e9:.2f} G parameters/s |")
    print(f"| write the file once | {writing:.1f} | {size / writing / 1e9:.2f} GB/s |")
    print(f"| the three | {floor:.1f} | |")
    print(f"| flatlm export | {wall:.1f} | {wall / floor:.2f} times the three; peak memory {peak / 1e9:.2f} GB |")


if __name__ == "__main__":
    main()
