"""The exporter's two ways of writing: weights behind the root, or ahead of it behind space that was kept."""

import json
from pathlib import Path

import numpy as np
import pytest

from flatlm.convert import graphs
from flatlm.generative.inspect import read_manifest
from flatlm.generative.runner import Runner
from flatlm.quantize.recipes import get_recipe
from flatlm.utilities import exporter
from flatlm.utilities.exporter import ExportRequest, export
from flatlm.utilities.results import result_path
from tests.examples.references import Case, make_llama


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    make_llama(Case("grouped_queries"), directory)
    return directory


def exported(checkpoint: Path, output: Path, recipe: str = "dynamic_int8") -> np.ndarray:
    """Export, and the logits of a few tokens."""
    export(ExportRequest(checkpoint, output, get_recipe(recipe), (4,), 16))
    with Runner.open(output) as runner:
        runner.prefill([5, 6, 7, 8])
        return runner.step(9).copy()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["dynamic_int8", "dynamic_int4_block32"])
def test_weights_written_while_compiling_are_the_same(recipe: str, checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    behind = exported(checkpoint, tmp_path / "behind.tflite", recipe)
    monkeypatch.setattr(exporter, "CONCURRENT_FROM", 0)
    assert np.array_equal(exported(checkpoint, tmp_path / "ahead.tflite", recipe), behind)
    assert (tmp_path / "ahead.tflite").stat().st_size > (tmp_path / "behind.tflite").stat().st_size  # the space that was kept
    monkeypatch.setattr(graphs, "ROOM_A_BLOCK", 0)  # too little: the weights are written again, behind the root
    assert np.array_equal(exported(checkpoint, tmp_path / "again.tflite", recipe), behind)
    assert (tmp_path / "again.tflite").stat().st_size == (tmp_path / "behind.tflite").stat().st_size


def test_the_manifest_lies_beside_the_file_and_in_it(checkpoint: Path, tmp_path: Path, fresh_compilers: None) -> None:
    output = tmp_path / "model.tflite"
    export(ExportRequest(checkpoint, output, get_recipe("none"), (4,), 16), prove=lambda path: {"max_abs_error": 0.5})
    beside = json.loads(result_path(output, "manifest").read_text())
    assert beside == read_manifest(output)
    assert beside["verification"] == {"max_abs_error": 0.5}
    assert beside["signatures"] == ["prefill_4", "decode"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.tflite", "model.tflite.manifest.json"]


def test_a_failing_compiler_leaves_nothing(checkpoint: Path, tmp_path: Path, fresh_compilers: None, monkeypatch) -> None:
    monkeypatch.setattr(exporter.CompilerProcess, "submit", lambda self, *job: self._process.kill())
    with pytest.raises(RuntimeError, match="converter's process ended"):
        export(ExportRequest(checkpoint, tmp_path / "model.tflite", get_recipe("none"), (4,), 16))
    assert list(tmp_path.iterdir()) == []
