"""The zip that is copied to devices: it runs where there is nothing but numpy and the runtime."""

import importlib.util
import io
import os
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from flatlm.generative.benchmarking.package import RUNNER_NAME, runner_files, runner_zip
from flatlm.generative.benchmarking.session import Session, Transport

RUNTIME = ("ai-edge-litert", "backports.strenum", "flatbuffers", "ml_dtypes", "numpy", "protobuf", "tqdm", "typing-extensions")
"""ai-edge-litert and what it requires: all that `pip install ai-edge-litert` brings."""


def test_what_is_in_it():
    names = {path.relative_to(Path(__file__).parents[3]).as_posix() for path in runner_files()}
    assert {"flatlm/__init__.py", "flatlm/generative/benchmarking/worker.py", "flatlm/generative/runner.py", "flatlm/errors.py"} <= names
    with zipfile.ZipFile(io.BytesIO(runner_zip())) as archive:
        assert {*archive.namelist()} == names | {"__main__.py"}
    assert len(runner_zip()) < 64 * 1024


def test_the_same_modules_give_the_same_bytes():
    before = runner_zip()
    runner_zip.cache_clear()
    assert runner_zip() == before


@pytest.fixture
def bare_packages(tmp_path):
    """A folder with the runtime's packages, and no others."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in RUNTIME:
        found = distribution(name)
        for top in {Path(file).parts[0] for file in found.files} - {".."}:
            (folder / top).symlink_to(Path(found.locate_file(top)).resolve())
    return folder


def test_it_runs_with_the_runtime_alone(tiny_file, tmp_path, bare_packages):
    (tmp_path / RUNNER_NAME).write_bytes(runner_zip())
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(bare_packages)}
    isolated = [sys.executable, "-S", "-s"]  # without site-packages
    absent = f"import importlib.util as u; print([u.find_spec(n) for n in {['flatlm', 'torch', 'transformers', 'litert_torch']}])"
    output = subprocess.check_output([*isolated, "-c", absent], env=environment, text=True, cwd=tmp_path)
    assert importlib.util.find_spec("torch") and output == "[None, None, None, None]\n"
    command = (*isolated, str(tmp_path / RUNNER_NAME))
    transport = Transport(command, str(tiny_file), "x", lambda how, line: AssertionError(f"{how}: {line}"), environment)
    with Session(transport) as session:
        assert session.open(threads=1).prefill_lengths == (4, 16)
        assert session.run(depth=3, prefill=16, decode=8).decode_s > 0
        assert session.close().machine.runtime.startswith("ai-edge-litert 2.")
