"""Files of torch.save: read lazily, without running their code, whatever views and wrappers they hold."""

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlm.utilities.checkpoints.directory import Checkpoint
from flatlm.utilities.checkpoints.files import Contiguous, Strided
from tests.utilities.checkpoints.torch_files import NAME, base, refusal, rewrite, save


def source(checkpoint: Checkpoint, name: str) -> object:
    return checkpoint._entries[name].source


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    ],
    ids=str,
)
@pytest.mark.parametrize("legacy", [False, True])
def test_every_readable_dtype(tmp_path: Path, dtype: torch.dtype, legacy: bool) -> None:
    values = (torch.randn(6, 5, generator=torch.Generator().manual_seed(3)) * 50).to(dtype)
    save(tmp_path, {"w": values, "p": values[2, 2], "hollow": values[:0]}, _use_new_zipfile_serialization=not legacy)
    with Checkpoint.open(tmp_path) as checkpoint:
        assert {name: record.shape for name, record in checkpoint.tensors.items()} == {"w": (6, 5), "p": (), "hollow": (0, 5)}
        assert {record.dtype for record in checkpoint.tensors.values()} == {dtype}
        assert torch.equal(checkpoint.rows("w", 1, 4), values[1:4])
        assert torch.equal(checkpoint.read("p"), values[2, 2])
        assert torch.equal(checkpoint.rows("hollow", 0, 0), values[:0])


VIEWS = {
    "plain": (base, Contiguous),
    "rows": (base[3:7], Contiguous),
    "one row": (base[4], Contiguous),
    "flat": (base.view(-1)[5:17], Contiguous),
    "scalar": (base[5, 6], Contiguous),
    "columns": (base[:, 2:9], Strided),
    "transposed": (base.t(), Strided),
    "block": (base[2:5, 3:9].t(), Strided),
    "steps": (base[1::3, ::2], Strided),
    "expanded": (base[:1].expand(5, 12), Strided),
    "expanded scalar": (base[2, 3].expand(4, 2), Strided),
    "permuted": (base.view(2, 5, 12).permute(2, 0, 1), Strided),
    "negated": (torch._neg_view(base[2:4]), Strided),
    "hollow": (base[:, :0], Contiguous),
    "hollow at the end": (base[::4][3:], Contiguous),
    "parameter": (torch.nn.Parameter(base[1:3]), Contiguous),
    "other storage": (base.clone().half(), Contiguous),
}


@pytest.mark.parametrize("legacy", [False, True])
def test_views_of_shared_storages(tmp_path: Path, legacy: bool) -> None:
    save(tmp_path, {name: view for name, (view, _) in VIEWS.items()}, _use_new_zipfile_serialization=not legacy)
    if not legacy:
        assert (tmp_path / NAME).stat().st_size < 2 * base.nbytes + 4000  # torch.save kept them shared
    with Checkpoint.open(tmp_path) as checkpoint:
        for name, (view, kind) in VIEWS.items():
            assert legacy or type(source(checkpoint, name)) is kind, name
            assert torch.equal(checkpoint.read(name), view.detach()), name
            assert checkpoint.read(name).is_contiguous()
            for start in range(len(view) if view.ndim else 0):
                assert torch.equal(checkpoint.rows(name, start, len(view)), view.detach()[start:]), (name, start)
        assert len(checkpoint.fingerprint()) == 64


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_rows_of_any_view(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    view = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for _ in range(data.draw(st.integers(0, 4))):
        dim = data.draw(st.integers(0, view.ndim - 1))
        match data.draw(st.sampled_from(["narrow", "step", "transpose", "expand"])):
            case "narrow":
                start = data.draw(st.integers(0, view.shape[dim]))
                view = view.narrow(dim, start, data.draw(st.integers(0, view.shape[dim] - start)))
            case "step":
                view = view[(slice(None),) * dim + (slice(None, None, data.draw(st.integers(1, 3))),)]
            case "transpose":
                view = view.transpose(0, dim)
            case "expand":
                view = view.unsqueeze(dim).expand(*view.shape[:dim], data.draw(st.integers(1, 3)), *view.shape[dim:])
    directory = tmp_path_factory.mktemp("view")
    save(directory, {"w": view})
    start = data.draw(st.integers(0, len(view)))
    stop = data.draw(st.integers(start, len(view)))
    with Checkpoint.open(directory) as checkpoint:
        assert torch.equal(checkpoint.rows("w", start, stop), view[start:stop])


def test_storages_are_found_by_their_names_not_by_their_order(tmp_path: Path) -> None:
    state = {f"layer{i}": torch.full((64,), float(i)) for i in range(12)}  # all of one size: a mix-up would not show in the sizes
    path = save(tmp_path, state)
    for _ in range(2):
        with Checkpoint.open(tmp_path) as checkpoint:
            for i in range(12):
                assert checkpoint.read(f"layer{i}").tolist() == [float(i)] * 64
        rewrite(path, order=-1)


class Bare(torch.nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "lr": torch.tensor(0.1)},
        lambda state: {"model": state, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
        lambda state: {"module": state, "buffer_names": [], "optimizer": None},
        lambda state: {"model_state_dict": state},
        lambda state: {"model": {"module": {"state_dict": state}}},
        lambda state: {**state, "version": 2, "note": "text", "model": None},
        lambda state: torch.nn.ModuleDict({"embed": Bare(state["embed.weight"]), "head": Bare(state["head.weight"])}).state_dict(),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_wrappers(tmp_path: Path, wrap: Any, legacy: bool) -> None:
    state = {"embed.weight": base, "head.weight": base[:2]}
    save(tmp_path, wrap(state), _use_new_zipfile_serialization=not legacy)
    with Checkpoint.open(tmp_path) as checkpoint:
        assert list(checkpoint.tensors) == list(state)
        assert torch.equal(checkpoint.read("head.weight"), base[:2])


@pytest.mark.parametrize(
    ("loaded", "complaint"),
    [
        (
            {"weights": {"w": base}, "epoch": 1},
            "has no tensors at its top or under state_dict, model_state_dict, model, module (it holds: 'weights', 'epoch')",
        ),
        ([base], "has no tensors at its top or under state_dict, model_state_dict, model, module (it holds: list)"),
        (base, "(it holds: Tensor)"),
        ({}, "(it holds: )"),
        ({1: base}, "its tensors' names are not all strings"),
    ],
)
def test_no_state_dict(tmp_path: Path, loaded: Any, complaint: str) -> None:
    save(tmp_path, loaded)
    assert complaint in refusal(tmp_path)
    assert "re-save its weights as safetensors" in refusal(tmp_path)


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("legacy", [False, True])
def test_no_pickled_code_runs(tmp_path: Path, legacy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    (tmp_path / "model").mkdir()
    save(tmp_path / "model", {"w": base, "evil": Evil(tmp_path / "trace")}, _use_new_zipfile_serialization=not legacy)
    message = refusal(tmp_path / "model")
    assert "holds Python objects other than tensors (posix.mkdir), whose code FlatLM does not run; re-save" in message
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_that_are_not_tensors(tmp_path: Path, legacy: bool) -> None:
    save(tmp_path, {"w": base, "args": argparse.Namespace(lr=1)}, _use_new_zipfile_serialization=not legacy)
    assert "holds Python objects other than tensors (argparse.Namespace), whose code FlatLM does not run" in refusal(tmp_path)


def test_torchscript(tmp_path: Path) -> None:
    rewrite(save(tmp_path, {"w": base}), **{"constants.pkl": b""})
    assert "is a TorchScript program, not weights" in refusal(tmp_path)


def test_legacy_files_are_loaded_once_at_the_first_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, {"a": base, "b": base.t()}, _use_new_zipfile_serialization=False)
    with Checkpoint.open(tmp_path) as checkpoint:
        loads = []
        load = torch.load
        monkeypatch.setattr(torch, "load", lambda *args, **options: loads.append(options) or load(*args, **options))
        assert len(checkpoint.fingerprint()) == 64
        assert loads == []
        assert torch.equal(checkpoint.rows("b", 2, 4), base.t()[2:4])
        assert torch.equal(checkpoint.rows("a", 2, 4), base[2:4])
        assert loads == [{"map_location": "cpu", "weights_only": True}]


def test_fingerprint_of_a_torch_file(tmp_path: Path) -> None:
    prints = set()
    for name, state in {"1": {"w": base}, "2": {"w": base + 1}, "3": {"v": base}, "4": {"w": base.t()}}.items():
        for legacy in (False, True):
            directory = tmp_path / f"{name}{legacy}"
            directory.mkdir()
            save(directory, state, _use_new_zipfile_serialization=not legacy)
            with Checkpoint.open(directory) as checkpoint:
                prints.add(checkpoint.fingerprint())
    assert len(prints) == 8
    for note in ("aa", "bb"):  # a file of the same size, with the same tensors
        save(tmp_path, {"w": base, "note": note})
        with Checkpoint.open(tmp_path) as checkpoint:
            prints.add(checkpoint.fingerprint())
    assert len(prints) == 10
