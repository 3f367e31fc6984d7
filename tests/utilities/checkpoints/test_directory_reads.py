"""Rows and tensors as they are read: where from, into what, by several threads, in how much memory."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.directory import Checkpoint
from tests.utilities.checkpoints.directories import tensor


@pytest.fixture
def opened(tmp_path: Path) -> Checkpoint:
    tensors = {"matrix": tensor(7, 3), "scalar": torch.tensor(2.5), "vector": tensor(5), "hollow": torch.zeros(4, 0)}
    save_file(tensors, tmp_path / "model.safetensors")
    return Checkpoint.open(tmp_path)


def test_scalars_and_hollow_tensors(opened: Checkpoint) -> None:
    assert opened.read("scalar") == 2.5
    assert opened.read("hollow").shape == (4, 0)
    assert opened.rows("hollow", 1, 3).shape == (2, 0)
    assert opened.rows("matrix", 2, 2).shape == (0, 3)
    with pytest.raises(ValueError, match=r"scalar: a scalar has no rows; use read\(\)"):
        opened.rows("scalar", 0, 1)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 8), (8, 8)])
def test_rows_that_are_not_there(opened: Checkpoint, start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=rf"matrix: rows \[{start}, {stop}\) are not within its 7 rows"):
        opened.rows("matrix", start, stop)


def test_unknown_tensor(opened: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match=r"no tensor 'matrx'; did you mean 'matrix'\?"):
        opened.rows("matrx", 0, 1)
    with pytest.raises(CheckpointError, match=r"no tensor 'zzz'; it has 4 tensors, such as"):
        opened.read("zzz")


def test_out_is_filled_and_returned(opened: Checkpoint) -> None:
    buffer = torch.full((4, 3), torch.nan)
    out = buffer[1:3]
    assert opened.rows("matrix", 5, 7, out=out) is out
    assert torch.equal(out, tensor(7, 3)[5:7])
    assert buffer[0].isnan().all() and buffer[3].isnan().all()
    parameter = torch.nn.Parameter(torch.zeros(5))
    assert torch.equal(opened.read("vector", out=parameter), tensor(5))


@pytest.mark.parametrize(
    "out", [torch.empty(3, 3), torch.empty(2, 3, dtype=torch.float16), torch.empty(3, 2).t(), torch.empty(2, 3, device="meta")]
)
def test_out_that_does_not_fit(opened: Checkpoint, out: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"matrix: out must be contiguous, on the CPU, of shape \(2, 3\) and torch.float32"):
        opened.rows("matrix", 0, 2, out=out)


def test_closed(opened: Checkpoint) -> None:
    opened.close()
    opened.close()
    for use in (lambda: opened.rows("matrix", 0, 1), lambda: opened.read("matrix"), opened.fingerprint):
        with pytest.raises(ValueError, match="was closed"):
            use()


def test_a_file_that_shrinks_while_it_is_read(opened: Checkpoint) -> None:
    os.truncate(opened.tensors["matrix"].file, 200)
    with pytest.raises(CheckpointError, match=r"model.safetensors: ends at byte \d+, \d+ bytes too soon"):
        for name in opened.tensors:
            opened.read(name)


def test_reads_that_come_in_parts(opened: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system may give them: of more than 2 GiB, it always does."""
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, views, offset: read(file, [views[0][:7]], offset))
    assert torch.equal(opened.rows("matrix", 1, 7), tensor(7, 3)[1:7])


def test_threads_read_at_once(tmp_path: Path) -> None:
    values = torch.arange(4096 * 64, dtype=torch.int32).view(4096, 64)
    save_file({"w": values}, tmp_path / "model.safetensors")
    wrong = []
    with Checkpoint.open(tmp_path) as checkpoint:

        def work(seed: int) -> None:
            for k in range(200):
                start = (seed * 977 + k * 131) % 4000
                if not torch.equal(checkpoint.rows("w", start, start + 96), values[start : start + 96]):
                    wrong.append(start)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


MEMORY = """
import sys, torch
from flatlm.utilities.checkpoints.directory import Checkpoint
def resident(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
with Checkpoint.open(sys.argv[1]) as checkpoint:
    buffer = torch.zeros(256, 1024)
    checkpoint.rows("w", 0, 256, out=buffer)
    before = resident()
    for start in range(0, 65536, 256):
        checkpoint.rows("w", start, start + 256, out=buffer)
    print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_resident_memory_is_that_of_the_rows(tmp_path: Path, name: str) -> None:
    values = {"w": torch.zeros(65536, 1024)}  # 256 MiB
    save_file(values, tmp_path / name) if name.endswith("safetensors") else torch.save(values, tmp_path / name)
    grown = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True).stdout
    assert int(grown) < 8 * 1024, "KiB"
