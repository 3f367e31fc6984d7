"""Compiling in a process of its own, so that the weights are encoded meanwhile: one Python lock cannot hold up both.

The converter's libraries take seconds to import; a `CompilerProcess` begins with that when it is made, before its job is known.
Run as a module this is that process: a pickled job on its stdin, and on its stdout a pickled answer, both from and to our own code.
Other ways to compile, for many exports of one graph or where the converter is loaded anyway, keep to the same `Compiler`.
"""

import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from flatlm.errors import FlatlmError

if TYPE_CHECKING:
    from flatlm.convert.graphs import Graph


class Compiler(Protocol):
    """What compiles for an export: it is entered, given a graph by `submit`, and asked for its `result`: the caller's to change."""

    def submit(self, graph: "Graph") -> None: ...

    def result(self) -> Any: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class CompilerProcess:
    """`submit` a graph once, then take `result`. Leaving the context ends the process, whatever it is doing."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "flatlm.convert.worker"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def submit(self, graph: "Graph") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(pickle.dumps(graph))
        self._process.stdin.close()
        self._process.stdin = None

    def result(self) -> Any:
        """The stamped model, waited for. Raises RuntimeError, with what the process said, where the converter failed,
        and the graph's own FlatlmError.
        """
        out, err = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"the converter's process ended with {self._process.returncode}:\n{err.decode(errors='replace')[-4000:]}")
        answer = pickle.loads(out)
        if isinstance(answer, FlatlmError):
            raise answer
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


class CompilerHere:
    """Compiles in this process, which loads the converter for it: about 400 MB that stay."""

    def submit(self, graph: "Graph") -> None:
        self._graph = graph

    def result(self) -> Any:
        return self._graph.stamp()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


class CachingCompiler:
    """Serves any number of exports, one after the other, and compiles each graph once, by a compiler that `start` makes for it.

    Results are kept pickled: half a megabyte for the demo model. Leaving the context ends what is being compiled, and keeps the rest.
    """

    def __init__(self, start: "Callable[[], Compiler]" = CompilerProcess) -> None:
        self._start = start
        self._running: Compiler | None = None
        self._compiled: dict[Graph, bytes] = {}
        self._graph: Graph

    def submit(self, graph: "Graph") -> None:
        self._graph = graph
        if graph not in self._compiled:
            self._running = self._start().__enter__()
            self._running.submit(graph)

    def result(self) -> Any:
        """The stamped model, waited for. Raises what its compiler raises."""
        if self._running is not None:
            self._compiled[self._graph] = pickle.dumps(self._running.result())
            self._end()
        return pickle.loads(self._compiled[self._graph])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        if self._running is not None:
            self._running.__exit__(None, None, None)
            self._running = None


def _main() -> None:
    from flatlm.convert.quiet import quiet

    with quiet():
        import flatlm.convert.decoder
        import flatlm.convert.lowerings  # noqa: F401 - the slow imports, while the job is on its way
    job = sys.stdin.buffer.read()
    if job:
        with redirect_stdout(sys.stderr):  # an author's module may print
            try:
                answer = pickle.loads(job).stamp()
            except FlatlmError as error:  # what the user can mend, for the other process to say
                answer = error
        sys.stdout.buffer.write(pickle.dumps(answer))


if __name__ == "__main__":
    _main()
