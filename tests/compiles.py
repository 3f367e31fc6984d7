"""Compiles that all tests of a session share: each distinct graph is compiled once, in a process that has the converter loaded.

Most of an export of a tiny model is the converter's: seconds of imports, and seconds to compile. Here a `CompilerProcess` keeps its
promises (a graph in, the caller's own stamped model out, compiled in another process from the sources as they are), and a test that needs
the real one asks for the fixture `fresh_compilers`. A result is kept for this session alone, for workers of pytest-xdist too. Its key
has the sources, the libraries and the graph, and it is used for an equal graph only.
"""

import fcntl
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from inspect import isfunction
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import pytest

from flatlm.authoring.compute_graph.graph import FlowGraph
from flatlm.convert.encoder_decoder_graph import EncoderDecoderGraph
from flatlm.convert.encoder_graph import EncoderGraph
from flatlm.convert.graphs import DecoderGraph, Graph
from flatlm.convert.worker import CompilerProcess

ROOT = Path(__file__).resolve().parents[1]
METHODS = [name for name, value in vars(CompilerProcess).items() if isfunction(value)]
FreshProcess: Any = type("FreshProcess", (), {name: vars(CompilerProcess)[name] for name in METHODS})
"""A process for one job: `CompilerProcess` as it is in the package."""
DATA = (DecoderGraph, EncoderDecoderGraph, EncoderGraph, FlowGraph)
"""Graphs that say all that is compiled. Those of authors' classes name a file, whose code may change."""


def sources_digest() -> str:
    """Of the package's code as it is now."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "flatlm").rglob("*.py")):
        digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()


@cache
def versions() -> list[str]:
    return [sys.version, *(f"{name} {version(name)}" for name in ("torch", "litert-torch", "ai-edge-litert", "jax", "numpy"))]


class Compiles:
    """What was compiled so far, a file for each graph in `folder`, and the process that compiles."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment = dict(os.environ)
        self._server: _Server | None = None
        self._alone = threading.Lock()

    def compiled(self, graph: Graph) -> bytes | None:
        """The stamped model, pickled. None where it cannot be compiled here: a `FreshProcess` then says why."""
        if not isinstance(graph, DATA):
            return None
        with self._alone:
            sources = sources_digest()
            with self._kept(sources, type(graph), graph) as kept:
                if kept.exists():
                    of, model = pickle.loads(kept.read_bytes())
                    if of == graph:
                        return model
                model = self._compile(graph, sources)
                if model is not None and sources_digest() == sources:
                    kept.with_suffix(".part").write_bytes(pickle.dumps((graph, model)))
                    kept.with_suffix(".part").rename(kept)
                return model

    def file(self, path: Path, make: Callable[[Path], object], *key: object) -> Path:
        """A copy of the file that `make` writes to where it is told, which follows from `key` and the package."""
        with self._kept(sources_digest(), *key) as kept:
            if not kept.exists():
                make(kept.with_suffix(".part"))
                kept.with_suffix(".part").rename(kept)
            shutil.copyfile(kept, path)
        return path

    @contextmanager
    def _kept(self, *key: object) -> Iterator[Path]:
        """Where what has the key is kept, while no other worker is making it."""
        kept = self._folder / hashlib.sha256(repr((versions(), *key)).encode()).hexdigest()
        with kept.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield kept

    def _compile(self, graph: Graph, sources: str) -> bytes | None:
        if self._server is not None and self._server.sources != sources:
            self.close()
        if self._server is None:
            self._server = _Server(sources, self._environment, self._folder / f"server_{os.getpid()}.log")
        try:
            return self._server.ask(graph)
        except BaseException as error:  # what it answers next would be the answer to this
            self.close()
            if isinstance(error, EOFError | BrokenPipeError):
                return None
            raise

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None


class _Server:
    """A process that compiles a graph at a time. `sources`: the digest of what it has loaded."""

    def __init__(self, sources: str, environment: dict[str, str], log: Path) -> None:
        self.sources = sources
        command = [sys.executable, "-c", "from tests.compiles import serve; serve()"]
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, env=environment
            )

    def ask(self, graph: Graph) -> bytes | None:
        assert self._process.stdin is not None and self._process.stdout is not None
        pickle.dump(graph, self._process.stdin)
        self._process.stdin.flush()
        answer: bytes | None = pickle.load(self._process.stdout)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()


def serve() -> None:
    """The server's process: graphs on stdin, on stdout each one's model, pickled, or None where it failed."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print
    from flatlm.convert.quiet import quiet

    with quiet():
        import flatlm.convert.decoder
        import flatlm.convert.lowerings  # noqa: F401
    lower_once()
    while True:
        try:
            graph = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            model = pickle.dumps(graph.stamp())
        except Exception:
            traceback.print_exc()
            model = None
        pickle.dump(model, answers)
        answers.flush()


def lower_once() -> None:
    """An operator of the same shapes is lowered once by this process, whatever graph it is in: a third of a small graph's compiling.

    Kept by the fingerprint by which the converter knows it within a graph, and by its spelling: 1 and 1.0 are equal, and not lowered alike.
    """
    from litert_torch.backend.jax_bridge import _wrap
    from torch._export import utils

    lower, texts = _wrap._lower_to_ir_text, dict[Any, str]()

    def kept(function: Any, args: Any, kwargs: Any, ir_input_names: Any = None) -> tuple[Callable[[], str], Any]:
        text_of, inputs = lower(function, args, kwargs, ir_input_names=ir_input_names)
        mark = _wrap.get_cache_fingerprint((function, args, kwargs, ir_input_names))
        if mark is None:
            return text_of, inputs
        key = mark, repr(mark)

        def text() -> str:
            if key not in texts:
                texts[key] = text_of()
            return texts[key]

        return text, inputs

    _wrap._lower_to_ir_text = kept
    _wrap._stablehlo_to_vhlo = cache(_wrap._stablehlo_to_vhlo)
    utils._materialize_cpp_cia_ops = cache(utils._materialize_cpp_cia_ops)  # which makes PyTorch's own operators known, each time anew


class SharedCompiler:
    """A `Compiler` that asks for a graph what the session has compiled."""

    compiles: ClassVar[Compiles]

    def __init__(self) -> None:
        self._graph: Graph
        self._fresh: Any = None

    def submit(self, graph: Graph) -> None:
        self._graph = graph

    def result(self) -> Any:
        model = SharedCompiler.compiles.compiled(self._graph)
        if model is not None:
            return pickle.loads(model)
        self._fresh = FreshProcess().__enter__()
        self._fresh.submit(self._graph)
        return self._fresh.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._fresh is not None:
            self._fresh.__exit__(kind, error, trace)


@contextmanager
def sharing(compiles: Compiles) -> Iterator[None]:
    """Every `CompilerProcess` that is made in this process meanwhile is a `SharedCompiler`."""
    SharedCompiler.compiles = compiles
    try:
        with _methods_of(SharedCompiler):
            yield
    finally:
        compiles.close()


def fresh() -> Any:
    """A context in which a `CompilerProcess` is a process again."""
    return _methods_of(FreshProcess)


@contextmanager
def _methods_of(kind: type) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in METHODS:
            patch.setattr(CompilerProcess, name, vars(kind)[name])
        yield
