"""The real llama.cpp, through whichever interpreter has llama-cpp-python: this one, or $FLATLM_LLAMA_CPP_PYTHON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flatlm.errors import RuntimeFileError
from flatlm.generative.benchmarking.session import Session
from flatlm.generative.comparison import compare as module
from flatlm.generative.comparison import llama_cpp_worker
from flatlm.generative.comparison.compare import CompareRequest, compare
from flatlm.generative.comparison.subject import Subject, name_subjects
from tests.utilities.checkpoints.gguf_models import CASES, gguf_tensors, metadata_of, random_model, write_gguf

PYTHON = Path(os.environ.get("FLATLM_LLAMA_CPP_PYTHON", sys.executable))
NO_VOCABULARY = {"tokenizer.ggml.model": "no_vocab"}


@pytest.fixture(scope="session")
def llama_python() -> Path:
    if subprocess.run([PYTHON, "-c", "import llama_cpp"], capture_output=True, check=False).returncode:
        pytest.skip(f"needs llama-cpp-python, which {PYTHON} has not; $FLATLM_LLAMA_CPP_PYTHON names an interpreter that has it")
    return PYTHON


@pytest.fixture(scope="module")
def model():
    return random_model(CASES["llama"], max_position_embeddings=256)


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_gguf(path, metadata_of(CASES["llama"], model) | NO_VOCABULARY, gguf_tensors(CASES["llama"], model))


def transport(file, python, context=64):
    return Subject("tiny", file).transport(context=context, llama_cpp_python=python)


def test_a_session(file, llama_python, capfd):
    with Session(transport(file, llama_python)) as session:
        opened = session.open(threads=1)
        assert opened.cache_length >= 64 and (opened.vocab_size, opened.threads, opened.prefill_lengths) == (96, 1, ())
        for depth in (0, 5, 5, 0, 30):
            times = session.run(depth=depth, prefill=16, decode=4)
            assert min(times.prefill_s, times.first_s, times.decode_s) > 0
        closed = session.close()
    assert 10e6 < closed.peak_rss_bytes < 500e6
    assert closed.machine.runtime.startswith("llama-cpp-python 0.")
    assert capfd.readouterr() == ("", "")


READ = """
import json, sys
sys.path.append(sys.argv[1])
from llama_cpp_worker import Worker
worker = Worker(64)
worker.open(sys.argv[2], 1, True)
found = []
for depth, prefill, decode in json.loads(sys.argv[3]):
    worker.run(depth, prefill, decode)
    llama = worker._llama.llama_get_logits(worker._model.ctx)
    found.append([worker._model.n_tokens, llama[0:96]])
print(json.dumps(found))
"""


def test_every_run_reads_its_own_tokens_and_no_others(file, model, llama_python):
    """The logits at its end are those of transformers for the same text, whatever ran before; its cache is float16."""
    import random

    runs = [[0, 6, 3], [0, 6, 3], [8, 6, 3], [8, 6, 3], [4, 9, 1], [0, 20, 8]]
    folder = str(Path(llama_cpp_worker.__file__).parent)
    reply = subprocess.run([llama_python, "-c", READ, folder, str(file), json.dumps(runs)], capture_output=True, text=True, check=True)
    for (depth, prefill, decode), (count, logits) in zip(runs, json.loads(reply.stdout.splitlines()[-1]), strict=True):
        assert count == depth + prefill + 1 + decode
        choose = random.Random(0)
        ids = [choose.randrange(96) for _ in range(count)]
        expected = model(torch.tensor([ids])).logits[0, -1].numpy()
        np.testing.assert_allclose(logits, expected, atol=5e-3 * np.abs(expected).max())


def test_a_file_that_is_no_model(tmp_path, llama_python):
    path = tmp_path / "no.gguf"
    path.write_bytes(b"no model at all")
    with (
        Session(transport(path, llama_python)) as session,
        pytest.raises(RuntimeFileError, match=r"no\.gguf cannot be loaded by llama\.cpp"),
    ):
        session.open(threads=1)


def test_it_takes_turns_with_a_tflite_file(file, tiny_file, llama_python, monkeypatch):
    monkeypatch.setattr(module, "TURN_S", 0.0)
    monkeypatch.setattr(module, "FRESH_S", 0.0)
    subjects = name_subjects([tiny_file, file])
    found = compare(CompareRequest(subjects, decode=4, rounds=6, threads=1, llama_cpp_python=llama_python))
    assert [subject.runtime.partition(" ")[0] for subject in found.subjects] == ["ai-edge-litert", "llama-cpp-python"]
    assert found.prefill_tokens == 16 and all(item.ratio.low > 0 for item in found.ratios)
    alone = compare(CompareRequest(name_subjects([file, file]), decode=4, rounds=1, threads=1, llama_cpp_python=llama_python))
    assert "do not watch the machine" in alone.notes[0] and alone.prefill_tokens == 128


def test_without_llama_cpp_the_way_out_is_told(file):
    bare = [sys.executable, "-c", "import llama_cpp"]
    if subprocess.run(bare, capture_output=True, check=False).returncode == 0:
        pytest.skip("llama-cpp-python is installed here")
    with (
        Session(transport(file, None)) as session,
        pytest.raises(RuntimeFileError, match=r"pip install 'flatlm\[llama-cpp\]'.*--llama-cpp"),
    ):
        session.open(threads=1)


def test_its_folder_hides_no_module_of_the_standard_library():
    """Run as a script, the worker finds modules beside it first."""
    names = {path.stem for path in Path(llama_cpp_worker.__file__).parent.glob("*.py")}
    assert not names & sys.stdlib_module_names
