"""Whole-process time and peak memory of an export, ours beside a peer's, in one run.

    python benchmarks/export.py CHECKPOINT [--recipe dynamic_int8] [--prefill 256] [--kv-cache-len 1024] [--runs 3]
        [--peer 'COMMAND {checkpoint} {out}']

Peak memory is what the kernel counts for the largest process of a command (ru_maxrss of waited-for children, as /usr/bin/time does),
memory-mapped pages included. Prints a Markdown table; ratios are peer over ours, medians.
"""

import argparse
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def measure(command: list[str]) -> tuple[float, float]:
    """Wall seconds and peak resident bytes of a command and its children; exits where it fails."""
    program = (
        "import resource, subprocess, sys, time\n"
        "start = time.perf_counter()\n"
        "code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)\n"
        "wall = time.perf_counter() - start\n"
        "sys.stderr.buffer.write(code.stderr[-2000:])\n"
        "print(code.returncode, wall, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, check=True)
    code, wall, peak = done.stdout.split()
    if int(code):
        sys.exit(f"{shlex.join(command)} exits {code}: {done.stderr}")
    return float(wall), float(peak)


def row(name: str, figures: list[tuple[float, float]]) -> str:
    walls, peaks = zip(*figures, strict=True)
    wall = f"{statistics.median(walls):.1f} ({min(walls):.1f} to {max(walls):.1f})"
    return f"| {name} | {len(figures)} | {wall} | {statistics.median(peaks) / 1e9:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--recipe", default="dynamic_int8")
    parser.add_argument("--prefill", default="256")
    parser.add_argument("--kv-cache-len", default="1024")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peer", help="a command with {checkpoint} and {out}; run once")
    parser.add_argument("--keep-peer", type=Path, metavar="DIR", help="keep what the peer wrote, there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.checkpoint.parent) as work:
        out = Path(work) / "model.tflite"
        flatlm = [str(Path(sys.executable).parent / "flatlm"), "export", str(args.checkpoint), "-o", str(out), "--no-verify"]
        ours = [*flatlm, "--recipe", args.recipe, "--prefill", args.prefill, "--kv-cache-len", args.kv_cache_len]
        measured = [measure(ours) for _ in range(args.runs)]
        size = out.stat().st_size
        out.unlink()
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; ", end="")
        print(f"{args.checkpoint.name} to {args.recipe}, prefill {args.prefill}, KV {args.kv_cache_len}: {size / 1e9:.3f} GB\n")
        print("| exporter | runs | wall s, median (min to max) | peak memory, GB |\n| --- | --- | --- | --- |")
        print(row("FlatLM", measured), flush=True)
        if args.peer:
            peer_out = Path(work) / "peer"
            peer = measure(shlex.split(args.peer.format(checkpoint=args.checkpoint, out=peer_out)))
            if not args.keep_peer:
                shutil.rmtree(peer_out, ignore_errors=True)
            else:
                shutil.move(peer_out, args.keep_peer)
            print(row("peer", [peer]))
            wall = peer[0] / statistics.median(w for w, _ in measured)
            peak = peer[1] / statistics.median(p for _, p in measured)
            print(f"\nratio: {wall:.1f} times faster, {peak:.1f} times less peak memory")


if __name__ == "__main__":
    main()
