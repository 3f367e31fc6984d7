"""llama.cpp as one side of a comparison: a process that answers the requests of `benchmarking/worker.py`, with a GGUF file.

    PYTHON llama_cpp_worker.py CONTEXT

CONTEXT: tokens that its KV cache holds. It runs as a script, by any interpreter that has llama-cpp-python, FlatLM or not: it imports
nothing else but the standard library (and its own folder comes first on its path: no module beside it may be named like one of that).
"""

import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

INSTALL = "pip install 'flatlm[llama-cpp]', or name an interpreter that has it with --llama-cpp-python"


class Refusal(Exception):  # noqa: N818 - an answer
    """A request that cannot be met, in one line."""


class Worker:
    """One GGUF file on the processor, with llama.cpp's defaults: its KV cache is float16."""

    def __init__(self, context: int) -> None:
        self._context = context
        self._model: Any = None
        self._llama: Any = None

    def open(self, file: str, threads: int, weight_cache: bool) -> dict[str, Any]:
        """`weight_cache` is LiteRT's: nothing is done with it."""
        start = time.perf_counter()
        try:
            import llama_cpp
        except (ImportError, OSError, RuntimeError) as error:
            raise Refusal(f"{file} needs llama-cpp-python ({error} in {sys.executable}): {INSTALL}") from error
        options = {"n_ctx": self._context, "n_threads": threads, "n_threads_batch": threads, "n_gpu_layers": 0}
        try:
            self._model = llama_cpp.Llama(file, **options, verbose=False)
        except (ValueError, RuntimeError, OSError) as error:
            raise Refusal(f"{file} cannot be loaded by llama.cpp: {error}") from error
        self._llama = llama_cpp
        return {
            "load_s": time.perf_counter() - start,
            "cache_length": self._model.n_ctx(),
            "vocab_size": self._model.n_vocab(),
            "threads": threads,
            "prefill_lengths": [],
        }

    def run(self, depth: int, prefill: int, decode: int) -> dict[str, Any]:
        """Seconds of reading `prefill` tokens behind `depth` others, of the first step after them, and of `decode` more steps."""
        if self._model is None:
            raise Refusal("a run was asked for before a file was opened")
        choose = random.Random(0)
        ids = [choose.randrange(self._model.n_vocab()) for _ in range(depth + prefill + 1 + decode)]
        if not (0 < depth <= self._model.n_tokens and self._forget(depth)):
            self._model.reset()
            self._eval(ids[:depth])
        start = time.perf_counter()
        self._eval(ids[depth : depth + prefill])
        read = time.perf_counter()
        self._eval(ids[depth + prefill : depth + prefill + 1])
        answered = time.perf_counter()
        for token in ids[depth + prefill + 1 :]:
            self._eval([token])
        ended = time.perf_counter()
        return {"prefill_s": read - start, "first_s": answered - read, "decode_s": ended - answered, "energy_j": None}

    def close(self) -> dict[str, Any]:
        """It does not watch the machine: who takes turns with it in LiteRT does."""
        version = getattr(self._llama, "__version__", "")
        machine = {"cpu": "", "architecture": platform.machine(), "cores": 0, "memory_bytes": 0, "system": ""}
        return {"peak_rss_bytes": _peak(), "noise": [], "machine": machine | {"runtime": f"llama-cpp-python {version}".strip()}}

    def _eval(self, ids: list[int]) -> None:
        """Reads them; at its end the logits of the last are there."""
        if ids:
            self._model.eval(ids)
            self._llama.llama_get_logits(self._model.ctx)  # waits for them

    def _forget(self, depth: int) -> bool:
        """Drops what came after so many tokens; False where the model cannot (a recurrent state)."""
        memory = self._llama.llama_get_memory(self._model.ctx)
        if not self._llama.llama_memory_seq_rm(memory, 0, depth, -1):
            return False
        self._model.n_tokens = depth
        return True


def _peak() -> int:
    """The most that this process has had in memory at once; not ru_maxrss, which begins with that of the process that started it."""
    with suppress(OSError), Path("/proc/self/status").open() as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Answers until a close, or the end of the requests."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what llama.cpp prints would not be an answer
    worker = Worker(int(sys.argv[1]))
    work: dict[str, Callable[..., dict[str, Any]]] = {"open": worker.open, "run": worker.run, "close": worker.close}
    for line in sys.stdin:
        ((name, arguments),) = json.loads(line).items()
        try:
            reply = work[name](**arguments)
        except Refusal as refusal:
            reply = {"error": " ".join(str(refusal).split())}
        print(json.dumps(reply), file=answers, flush=True)
        if name == "close":
            break


if __name__ == "__main__":
    main()
