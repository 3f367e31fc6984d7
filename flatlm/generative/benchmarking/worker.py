"""A process that does nothing but run one file: requests on its stdin, answers on its stdout, one JSON object a line.

    {"open": {"file": PATH, "threads": N or null, "weight_cache": true}}     once, first
        {"load_s", "cache_length", "vocab_size", "threads", "prefill_lengths"}
    {"run": {"depth": N, "prefill": N, "decode": N}}                         any number of times
        {"prefill_s", "first_s", "decode_s", "energy_j"}
    {"close": {}}
        {"peak_rss_bytes", "noise", "machine"}; then it ends

A request that cannot be met is answered {"error": one line}. It ends when its stdin does, whatever it is at: then nobody
listens any more. It runs as a module, and on devices from a zip file of the modules that it needs (`package.py`), so it
and what it imports need numpy and ai-edge-litert, and nothing else.
"""

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TextIO

import numpy as np

from flatlm.errors import RuntimeFileError
from flatlm.generative.benchmarking.energy import EnergyMeter
from flatlm.generative.benchmarking.machine import this_machine
from flatlm.generative.benchmarking.noise import NoiseWatch
from flatlm.generative.memory import peak_resident_bytes
from flatlm.generative.runner import Runner

IDLE_S = 3600.0
"""So long without a request, and it ends: a network may be gone without telling."""


class Worker:
    """What the process does. Raises RuntimeFileError where a request cannot be met."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._runner: Runner | None = None
        self._depth = 0
        self._noise = NoiseWatch()
        self._energy = EnergyMeter()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        ((name, arguments),) = request.items()
        work: dict[str, Callable[..., dict[str, Any]]] = {"open": self.open, "run": self.run, "close": self.close}
        return work[name](**arguments)

    def open(self, file: str, threads: int | None, weight_cache: bool) -> dict[str, Any]:
        start = self._clock()
        self._runner = runner = Runner.open(file, threads=threads, weight_cache=weight_cache)
        return {
            "load_s": self._clock() - start,
            "cache_length": runner.cache_length,
            "vocab_size": runner.vocab_size,
            "threads": runner.threads,
            "prefill_lengths": list(runner.prefill_lengths),
        }

    def run(self, depth: int, prefill: int, decode: int) -> dict[str, Any]:
        """Seconds of reading `prefill` tokens behind `depth` others, of the first step after them, and of `decode` more steps."""
        runner = self._runner
        if runner is None:
            raise RuntimeFileError("a run was asked for before a file was opened")
        total = depth + prefill + 1 + decode
        ids = np.random.default_rng(0).integers(0, runner.vocab_size, total).tolist()
        context, prompt, (first, *rest) = ids[:depth], ids[depth : depth + prefill], ids[depth + prefill :]
        if not (depth and depth == self._depth and runner.can_rewind(depth)):
            self._depth = 0
            runner.reset()
            runner.require_room(total)
            runner.prefill(context)
            self._depth = depth
        runner.rewind(depth)
        with self._noise:
            start = self._clock()
            runner.prefill(prompt)
            read = self._clock()
            runner.step(first)
            answered = self._clock()
            with self._energy.span() as energy:
                begun = self._clock()
                for token in rest:
                    runner.step(token)
                ended = self._clock()
        return {"prefill_s": read - start, "first_s": answered - read, "decode_s": ended - begun, "energy_j": energy.joules}

    def close(self) -> dict[str, Any]:
        return {"peak_rss_bytes": peak_resident_bytes(), "noise": list(self._noise.reasons()), "machine": asdict(this_machine())}


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answers until a close, the end of the requests, or too long a silence."""
    lines: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in requests:
            lines.put(line)
        os._exit(0)  # in the middle of a run too

    threading.Thread(target=listen, daemon=True).start()
    worker = Worker()
    closed = False
    while not closed:
        try:
            request = json.loads(lines.get(timeout=IDLE_S))
        except queue.Empty:
            return
        try:
            reply = worker.answer(request)
            closed = "close" in request
        except RuntimeFileError as error:
            reply = {"error": str(error)}
        except ImportError as error:
            reply = {"error": f"the LiteRT runtime cannot be imported ({error}): pip install ai-edge-litert"}
        print(json.dumps(reply), file=answers, flush=True)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the runtime prints would not be an answer
    serve(sys.stdin, answers)
    answers.flush()
    os._exit(0)  # tearing the runtime down takes time, and it logs


if __name__ == "__main__":
    main()
