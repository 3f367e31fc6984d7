"""The ways to compile: each gives the same graph, and the one that caches compiles it once, whatever becomes of an export."""

import pickle
from pathlib import Path
from typing import Any, Self

import pytest

from flatlm.convert.graphs import DecoderGraph
from flatlm.convert.signatures import signature_specs
from flatlm.convert.worker import CachingCompiler, CompilerHere, CompilerProcess
from flatlm.layers.kv_cache import CacheGeometry
from tests.compiles import Compiles
from tests.models import tiny_config


def job(prefill: int = 4, *, layers: int = 1, slots: int = 16, logits: bool = False) -> DecoderGraph:
    """A graph that equals another of the same numbers, and shares nothing with it."""
    return DecoderGraph(
        tiny_config(layers=layers), CacheGeometry(slots, prefill), tuple(signature_specs((prefill,), prefill_logits=logits))
    )


@pytest.mark.slow
def test_a_process_and_this_one_make_the_same_graph(fresh_compilers: None) -> None:
    with CompilerProcess() as process, CompilerHere() as here:
        process.submit(job())
        here.submit(job())
        there = process.result()
        assert there.subgraphs and pickle.dumps(there) == pickle.dumps(pickle.loads(pickle.dumps(here.result())))


@pytest.mark.slow
def test_a_process_that_compiled_others_makes_the_same_graph(tmp_path: Path, fresh_compilers: None) -> None:
    """As the tests' own does, which lowers an operator of the same shapes once."""
    tests_own = Compiles(tmp_path)
    try:
        found = [tests_own.compiled(each) for each in (job(layers=2), job())]
    finally:
        tests_own.close()
    assert all(found)
    with CompilerProcess() as process:
        process.submit(job())
        assert pickle.dumps(process.result()) == found[1]


class Noted:
    """Stands in for a compiler: its graph says what it was asked for, and it notes that it was begun and left."""

    started: list["Noted"]

    def __init__(self) -> None:
        self.left = 0
        self.started.append(self)

    def submit(self, graph: DecoderGraph) -> None:
        self._graph = [len(graph.config.blocks), graph.geometry.longest_step, *graph.specs]

    def result(self) -> Any:
        return self._graph

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.left += 1


@pytest.fixture
def caching(monkeypatch: pytest.MonkeyPatch) -> CachingCompiler:
    monkeypatch.setattr(Noted, "started", [], raising=False)
    return CachingCompiler(Noted)


def compiled(compiler: CachingCompiler, which: DecoderGraph) -> Any:
    with compiler:
        compiler.submit(which)
        return compiler.result()


def test_a_graph_is_compiled_once_and_each_result_is_the_callers_own(caching: CachingCompiler) -> None:
    first = compiled(caching, job())
    whole = list(first)
    first.clear()
    assert compiled(caching, job()) == whole
    assert [each.left for each in Noted.started] == [1]


def test_another_graph_is_compiled_anew_and_neither_is_forgotten(caching: CachingCompiler) -> None:
    jobs = [job(), job(8), job(layers=2), job(slots=32), job(logits=True)]
    found = [compiled(caching, each) for each in jobs + jobs]
    assert found == 2 * [[len(each.config.blocks), each.geometry.longest_step, *each.specs] for each in jobs]
    assert [each.left for each in Noted.started] == [1, 1, 1, 1, 1]


def test_what_is_left_in_the_middle_is_ended_and_begun_anew(caching: CachingCompiler) -> None:
    with pytest.raises(KeyboardInterrupt), caching:
        caching.submit(job())
        raise KeyboardInterrupt
    assert [each.left for each in Noted.started] == [1]
    assert compiled(caching, job())
    assert [each.left for each in Noted.started] == [1, 1]
