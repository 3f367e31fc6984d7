"""What tests share: one compile for equal graphs and the same sources, and never another graph's or an older source's."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flatlm.authoring.module_graph import AuthoredGraph
from flatlm.convert.graphs import DecoderGraph, Graph
from tests import compiles
from tests.convert.test_worker import job


class Server:
    """Stands in for the process: each answer has a number of its own."""

    asked: list[tuple[str, Graph]]
    """The sources that it has loaded, and the graph."""
    fails = False

    def __init__(self, sources: str, *_: object) -> None:
        self.sources = sources
        self.closed = False

    def ask(self, graph: Graph) -> bytes | None:
        if self.fails:
            raise EOFError
        assert not self.closed
        self.asked.append((self.sources, graph))
        return pickle.dumps(len(self.asked))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The last one is the digest of the sources as they are."""
    digests = ["first"]
    monkeypatch.setattr(Server, "asked", [], raising=False)
    monkeypatch.setattr(compiles, "_Server", Server)
    monkeypatch.setattr(compiles, "sources_digest", lambda: digests[-1])
    return digests


@pytest.fixture
def worker(sources: list[str], tmp_path: Path) -> Callable[[], compiles.Compiles]:
    """Makes workers of one session."""
    return lambda: compiles.Compiles(tmp_path)


def test_workers_share_what_one_of_them_compiled(worker: Callable[[], compiles.Compiles]) -> None:
    one, other = worker(), worker()
    assert one.compiled(job()) == other.compiled(job()) == one.compiled(job()) == pickle.dumps(1)
    assert other.compiled(job(slots=32)) == one.compiled(job(slots=32)) == pickle.dumps(2)
    assert Server.asked == [("first", job()), ("first", job(slots=32))]


def test_other_sources_are_compiled_anew_by_another_process(worker: Callable[[], compiles.Compiles], sources: list[str]) -> None:
    one = worker()
    before = one.compiled(job())
    sources.append("second")
    assert one.compiled(job()) == worker().compiled(job()) != before
    assert Server.asked == [("first", job()), ("second", job())]


def test_sources_that_change_meanwhile_are_kept_by_nobody(
    worker: Callable[[], compiles.Compiles], sources: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Server.ask
    monkeypatch.setattr(Server, "ask", lambda self, graph: sources.append("second") or ask(self, graph))
    one = worker()
    assert one.compiled(job()) == pickle.dumps(1)
    sources.append("first")
    assert one.compiled(job()) == pickle.dumps(2)


def test_what_is_kept_is_only_for_an_equal_graph(
    worker: Callable[[], compiles.Compiles], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DecoderGraph, "__repr__", lambda self: "all alike")
    assert [worker().compiled(each) for each in (job(), job(8), job())] == [pickle.dumps(number) for number in (1, 2, 3)]


def test_an_authors_graph_is_compiled_each_time(worker: Callable[[], compiles.Compiles]) -> None:
    graph = job()
    assert worker().compiled(AuthoredGraph(graph.config, graph.geometry, graph.specs)) is None  # type: ignore[arg-type]
    assert not Server.asked


def test_a_process_that_died_leaves_it_to_a_fresh_one(worker: Callable[[], compiles.Compiles], monkeypatch: pytest.MonkeyPatch) -> None:
    one = worker()
    monkeypatch.setattr(Server, "fails", True)
    assert one.compiled(job()) is None
    monkeypatch.setattr(Server, "fails", False)
    assert one.compiled(job()) == pickle.dumps(1)


def test_what_the_server_cannot_compile_is_said_by_a_fresh_process() -> None:
    """The real ones: the error is the converter's own."""
    impossible = replace(job(), specs=("no signature",))  # type: ignore[arg-type]
    with compiles.CompilerProcess() as compiler:
        compiler.submit(impossible)
        with pytest.raises(RuntimeError, match="converter's process ended with 1"):
            compiler.result()
