"""What the server costs: over `flatlm benchmark` at one client, and at several with a public load tool.

    python -m benchmarks.serving FILE [--tokenizer DIR] [--threads N] [--prompt 128] [--tokens 256] [--rounds 12] [--clients 1,4,16]

One client: the benchmark's own worker (the runner alone, in this process) and a `flatlm serve` take turns on the same file, with the same
tokens as the prompt and as many threads: the time to the first token, the speed of those after it, and the whole, as ratios of one round,
with an interval that encloses their median with at least 95 %. Several: `hey` (Debian's package) posts one completion again and again.
Prints Markdown tables. Nothing else may run on the machine.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np

from benchmarks.hey_output import HEADERS, Load
from benchmarks.served import served
from flatlm.commands.base import comma_separated_lengths
from flatlm.generative.benchmarking.worker import Worker
from flatlm.generative.comparison.ratios import Ratio
from flatlm.generative.loading import available_cores

SLOTS = 4
WAITING = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--clients", type=comma_separated_lengths, default=(1, 4, 16))
    parser.add_argument("--requests", type=int, default=64, help="at each number of clients")
    args = parser.parse_args()
    options = ["--model-name", "model", "--threads", args.threads, "--slots", SLOTS, "--max-queue", WAITING, "--no-prefix-cache"]
    with served(args.file, args.tokenizer, options) as said:
        one_client(args, said["address"])
        several_clients(args, said["address"])


def one_client(args: argparse.Namespace, url: str) -> None:
    worker = Worker()
    facts = worker.open(str(args.file), args.threads, True)
    ids = np.random.default_rng(0).integers(0, facts["vocab_size"], args.prompt + 1).tolist()
    body = {"model": "model", "prompt": ids, "max_tokens": args.tokens + 1, "temperature": 0, "ignore_eos": True}

    def alone() -> tuple[float, float]:
        run = worker.run(0, args.prompt, args.tokens)
        return run["prefill_s"] + run["first_s"], run["decode_s"]

    with httpx.Client(base_url=url, timeout=600) as http:

        def streaming() -> tuple[float, float]:
            began = time.perf_counter()
            with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
                parts = answer.iter_raw()
                assert next(parts).startswith(b"data: {")
                first = time.perf_counter()
                last = b"".join(parts)
            assert last.endswith(b"[DONE]\n\n") and b'"error"' not in last
            return first - began, time.perf_counter() - first

        def at_once() -> tuple[float, float]:
            began = time.perf_counter()
            answer = http.post("/v1/completions", json=body).json()
            assert answer["usage"]["completion_tokens"] == args.tokens + 1
            return 0.0, time.perf_counter() - began

        ways = {"flatlm benchmark": alone, "served, streaming": streaming, "served at once": at_once}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for number in range(args.rounds + 2):
            turn = list(ways.items())
            for name, way in turn[number % 3 :] + turn[: number % 3]:
                found = way()
                if number >= 2:  # the first two warm up
                    times[name].append(found)
    print(f"{args.file.name}: {args.prompt} tokens of prompt, {args.tokens} decoded, {args.threads} threads, {args.rounds} rounds\n")
    print("| | first token, ms | ratio | tokens/s after it | time, ratio | whole, ms | ratio |")
    print("| --- | ---: | --- | ---: | --- | ---: | --- |")
    base = times["flatlm benchmark"]
    for name, found in times.items():
        cells = [f"{median(map(sum, found)) * 1e3:,.1f}", ratio([*map(sum, found)], [*map(sum, base)])]
        if name != "served at once":
            first, after = zip(*found, strict=True)
            base_first, base_after = zip(*base, strict=True)
            speed = f"{args.tokens / median(after):,.0f}"
            cells = [f"{median(first) * 1e3:.1f}", ratio(first, base_first), speed, ratio(after, base_after), *cells]
        else:
            cells = ["", "", "", "", *cells]
        print(f"| {name} | {' | '.join(cells)} |")


def ratio(values: "list[float] | tuple[float, ...]", firsts: "list[float] | tuple[float, ...]") -> str:
    """`1.03 (1.02 to 1.05)`."""
    found = Ratio.of(values, firsts)
    if found.low is None or values == firsts:
        return f"{found.median:.3f}"
    return f"{found.median:.3f} ({found.low:.3f} to {found.high:.3f})"


def several_clients(args: argparse.Namespace, url: str) -> None:
    """Without streaming: hey counts an answer when it is whole."""
    body: dict[str, Any] = {"model": "model", "prompt": "Once upon a time", "max_tokens": 64, "temperature": 0, "ignore_eos": True}
    print(f"\n`hey -n {args.requests}`, completions of {body['max_tokens']} tokens, {SLOTS} slots\n")
    print(f"| clients | {' | '.join(HEADERS)} |")
    print("| ---: | ---: | ---: | ---: | ---: | --- |")
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(body, file)
        file.flush()
        for clients in args.clients:
            asked = max(args.requests, clients) // clients * clients  # as many for each client
            command = ["hey", "-o", "csv", "-n", str(asked), "-c", str(clients), "-t", "600", "-m", "POST"]
            command += ["-T", "application/json", "-D", file.name, f"{url}/v1/completions"]
            said = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"GOMAXPROCS": "1"}).stdout
            print(f"| {clients} | {' | '.join(Load.read(said, asked=asked).row(tokens=body['max_tokens']))} |", flush=True)


if __name__ == "__main__":
    main()
