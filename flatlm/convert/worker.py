"""Compiling in a process of its own, so that the weights are encoded meanwhile: one Python lock cannot hold up both.

The converter's libraries take seconds to import; a `CompilerProcess` begins with that when it is made, before its job is known.
Run as a module this is that process: a pickled job on its stdin, and on its stdout a pickled answer, both from and to our own code.
"""

import pickle
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from flatlm.convert.signatures import SignatureSpec
    from flatlm.layers.config import ModelConfig
    from flatlm.layers.kv_cache import CacheGeometry


class CompilerProcess:
    """`submit` a decoder once, then take `result`. Leaving the context ends the process, whatever it is doing."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "flatlm.convert.worker"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def submit(self, config: "ModelConfig", geometry: "CacheGeometry", specs: "Sequence[SignatureSpec]") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(pickle.dumps((config, geometry, list(specs))))
        self._process.stdin.close()
        self._process.stdin = None

    def result(self) -> Any:
        """The stamped model, waited for. Raises RuntimeError, with what the process said, where the converter failed."""
        out, err = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"the converter's process ended with {self._process.returncode}:\n{err.decode(errors='replace')[-4000:]}")
        return pickle.loads(out)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


def _main() -> None:
    from flatlm.convert.decoder import stamp_decoder
    from flatlm.convert.quiet import quiet

    with quiet():
        import flatlm.convert.lowerings  # noqa: F401 - the slow imports, while the job is on its way
    job = sys.stdin.buffer.read()
    if job:
        sys.stdout.buffer.write(pickle.dumps(stamp_decoder(*pickle.loads(job))))


if __name__ == "__main__":
    _main()
