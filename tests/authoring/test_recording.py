"""What an author's load_weights does is what the plan does: rows as rows, what is computed computed again, and nothing read before."""

import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flatlm.authoring.load_weights import load_stacked, load_weight, packed_table
from flatlm.authoring.modules import build_merged_colwise_linear, build_qkv_proj
from flatlm.authoring.recording import ComputedWeight, Recording, record
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.checkpoints.store import TensorStore
from flatlm.utilities.weights.loader import PlannedWeight
from flatlm.utilities.weights.slots import Slot

Weights = Iterable[tuple[str, Tensor]]
Load = Callable[[nn.Module, Weights], None]

TENSORS = {
    "q": (32, 12),
    "k": (16, 12),
    "v": (16, 12),
    "fused": (64, 12),
    "conv": (12, 64),
    "gate": (24, 12),
    "up": (24, 12),
    "merged": (48, 12),
    "experts": (3, 48, 12),
    "transposed_experts": (3, 12, 48),
    "bias": (48,),
    "cube": (4, 12, 12),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tensors")
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in TENSORS.items()}
    tensors["half"] = tensors["merged"].half()
    tensors["whole"] = torch.arange(48)
    save_file(tensors, directory / "model.safetensors")
    return directory


def module() -> nn.Module:
    made = nn.Module()
    made.qkv = build_qkv_proj(12, num_q_heads=4, num_kv_heads=2, head_size=8, bias=False)
    made.gate_up = build_merged_colwise_linear(12, [24, 24], bias=True)
    return made


def only(*names: str) -> Callable[[Callable[..., None]], Load]:
    """A load that is given these tensors of the checkpoint, once all are there."""

    def decorated(fill: Callable[..., None]) -> Load:
        def load(made: nn.Module, weights: Weights) -> None:
            given = dict(weights)
            fill(made, *(given[name] for name in names))

        return load

    return decorated


def rows(made: Any, *shards: Tensor) -> None:
    for shard_id, tensor in zip(("q", "k", "v"), shards, strict=True):
        load_weight(made.qkv.weight, tensor, shard_id=shard_id)


def halves(made: Any, first: Tensor, second: Tensor) -> None:
    load_weight(made.gate_up.weight, first, shard_id=0)
    load_weight(made.gate_up.weight, second, shard_id=1)


def strided(made: Any, fused: Tensor) -> None:
    made.gate_up.weight.data[:16].copy_(fused[1:48:3])
    made.gate_up.weight.data[16:].copy_(fused[32:])


def assigned(made: Any, merged: Tensor) -> None:
    made.gate_up.weight.data = merged


def replaced(made: Any, merged: Tensor) -> None:
    made.gate_up.weight = nn.Parameter(merged.clone(), requires_grad=False)


def through_copies(made: Any, half: Tensor) -> None:
    copied = half.to("cpu", torch.float32).contiguous().clone()
    made.gate_up.weight.data[:24] = copied[:24]
    made.gate_up.weight.data[24:] = copied[24:]


def turned_pairs(made: Any, q: Tensor, k: Tensor, v: Tensor) -> None:
    def turned(w: Tensor) -> Tensor:
        return w.view(-1, 4, 2, 12).transpose(1, 2).reshape(w.shape)

    rows(made, turned(q), turned(k), v)


def in_place(made: Any, q: Tensor, k: Tensor, v: Tensor) -> None:
    rows(made, q.clone().mul_(0.5), k, v)
    made.qkv.weight.data[40:48] += 1


def on_the_source(made: Any, merged: Tensor) -> None:
    load_weight(made.gate_up.weight, merged.mul_(2).add_(1))


def backwards(made: Any, q: Tensor, k: Tensor, v: Tensor) -> None:
    for shard_id, tensor in (("v", v), ("q", q), ("k", k)):
        load_weight(made.qkv.weight, tensor, shard_id=shard_id)


def narrow_parameter(made: Any, merged: Tensor) -> None:
    made.gate_up.weight = nn.Parameter(torch.empty(48, 12, dtype=torch.float16, device=merged.device), requires_grad=False)
    made.gate_up.weight.data.copy_(merged)


def with_zeros(made: Any, bias: Tensor) -> None:
    made.gate_up.bias.data.zero_()
    made.gate_up.bias.data[24:].copy_(bias[:24])


def columns(made: Any, conv: Tensor) -> None:
    made.gate_up.weight.data[:, :6] = conv[:6, :48].t()
    made.gate_up.weight.data[:, 6:] = conv[6:, :48].t()


def grouped(made: Any, fused: Tensor) -> None:
    rows(made, *made.qkv.weight.weight_spliter(fused, layout="hgd"))


@dataclass(frozen=True)
class Hook:
    load: Load
    parameter: str
    exact: bool


HOOKS = {
    "stacked": Hook(only("q", "k", "v")(rows), "qkv.weight", True),
    "stacked backwards": Hook(only("q", "k", "v")(backwards), "qkv.weight", True),
    "merged already": Hook(only("fused")(lambda made, t: load_weight(made.qkv.weight, t)), "qkv.weight", True),
    "split": Hook(only("fused")(lambda made, t: rows(made, *made.qkv.weight.weight_spliter(t))), "qkv.weight", True),
    "halves": Hook(only("gate", "up")(halves), "gate_up.weight", True),
    "chunks": Hook(only("merged")(lambda made, t: halves(made, *t.chunk(2))), "gate_up.weight", True),
    "transposed": Hook(only("conv")(lambda made, t: load_weight(made.qkv.weight, t.t())), "qkv.weight", True),
    "columns of it": Hook(only("conv")(lambda made, t: halves(made, t[:, :24].T, t[:, 40:].T)), "gate_up.weight", True),
    "strided": Hook(only("fused")(strided), "gate_up.weight", True),
    "expert": Hook(only("experts")(lambda made, t: load_weight(made.gate_up.weight, t[1])), "gate_up.weight", True),
    "turned expert": Hook(only("transposed_experts")(lambda made, t: load_weight(made.gate_up.weight, t[2].T)), "gate_up.weight", True),
    "assigned": Hook(only("merged")(assigned), "gate_up.weight", True),
    "replaced": Hook(only("merged")(replaced), "gate_up.weight", True),
    "copies": Hook(only("half")(through_copies), "gate_up.weight", True),
    "bias": Hook(only("bias")(lambda made, t: load_weight(made.gate_up.bias, t)), "gate_up.bias", True),
    "turned pairs": Hook(only("q", "k", "v")(turned_pairs), "qkv.weight", False),
    "in place": Hook(only("q", "k", "v")(in_place), "qkv.weight", False),
    "on the source": Hook(only("merged")(on_the_source), "gate_up.weight", False),
    "narrow parameter": Hook(only("merged")(narrow_parameter), "gate_up.weight", False),
    "zeros": Hook(only("bias")(with_zeros), "gate_up.bias", False),
    "column by column": Hook(only("conv")(columns), "gate_up.weight", False),
    "grouped": Hook(only("fused")(grouped), "qkv.weight", False),
    "joined": Hook(only("gate", "up")(lambda made, *t: load_weight(made.gate_up.weight, torch.cat(t))), "gate_up.weight", False),
    "sum": Hook(only("merged")(lambda made, t: load_weight(made.gate_up.weight, 1 + t)), "gate_up.weight", False),
    "rounded": Hook(only("merged")(lambda made, t: load_weight(made.gate_up.weight, t.half())), "gate_up.weight", False),
    "reshaped": Hook(only("cube")(lambda made, t: load_weight(made.gate_up.weight, t.reshape(48, 12))), "gate_up.weight", False),
    "numbers": Hook(only("whole")(lambda made, t: load_weight(made.gate_up.bias, t)), "gate_up.bias", False),
}


class Counted:
    """A checkpoint that counts the elements that are read."""

    def __init__(self, store: TensorStore) -> None:
        self._store, self.read_elements = store, 0
        self._whole: dict[str, Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        out = self._store.rows(name, start, stop)
        self.read_elements += out.numel()
        return out

    def read(self, name: str) -> Tensor:
        """One object for all who ask: none of them may change it."""
        out = self._whole.setdefault(name, self._store.read(name))
        self.read_elements += out.numel()
        return out


def recorded(load: Load, store: Any) -> tuple[nn.Module, Recording]:
    with torch.device("meta"):
        made = module()
    return made, record(made, lambda weights: load(made, weights), store.tensors, after=lambda: None)


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_the_plan_gives_what_the_code_gives(hook: Hook, checkpoint: Path) -> None:
    with open_checkpoint(checkpoint) as opened:
        store: Any = Counted(opened)
        made, recording = recorded(hook.load, store)
        assert not recording.problems
        parameter = made.get_parameter(hook.parameter)
        parts = recording.parts(parameter, {name: tuple(tensor.shape) for name, tensor in store.tensors.items()})
        exact = parts is not None and all(store.tensors[part.tensor].dtype.is_floating_point for part in parts)
        assert exact == hook.exact
        assert not recording.missing(parameter)
        assert store.read_elements == 0  # nothing was read to plan it
        source = PlannedWeight(Slot("w", parts), store) if parts and exact else ComputedWeight("w", parameter, recording, store)
        real = module()
        with torch.no_grad():
            hook.load(real, [(name, opened.read(name)) for name in opened.tensors])
        expected = real.get_parameter(hook.parameter).float()
        assert source.shape == tuple(expected.shape)
        cuts = [0, 1, 7, 24, expected.shape[0]]
        got = torch.cat([source.rows(start, stop).float() for start, stop in pairwise(cuts)])
        assert torch.equal(got, expected)
        assert getattr(source, "_values", None) is None  # nothing is kept
        assert torch.equal(source.rows(3, 9).float(), expected[3:9])  # also after all were taken


def test_rows_are_read_and_no_more(checkpoint: Path) -> None:
    with open_checkpoint(checkpoint) as opened:
        store: Any = Counted(opened)
        made, recording = recorded(HOOKS["stacked"].load, store)
        parts = recording.parts(made.qkv.weight, {name: tuple(tensor.shape) for name, tensor in store.tensors.items()})
        assert parts is not None
        PlannedWeight(Slot("w", parts), store).rows(30, 34)
        assert store.read_elements == 4 * 12


def test_what_is_left_over_or_left_out_is_known(checkpoint: Path) -> None:
    def load(made: Any, weights: Weights) -> None:
        for name, tensor in weights:
            if name in ("q", "v"):
                load_weight(made.qkv.weight, tensor, shard_id=name)
            elif name == "gate":
                made.nowhere.copy_(tensor)
            elif name == "up":
                load_weight(made.gate_up.weight, tensor, shard_id=7)
            elif name == "merged":
                load_weight(made.gate_up.bias, tensor)
            elif name == "bias":
                {}[name]
            elif name == "cube" and tensor.sum() > 0:
                raise AssertionError

    with open_checkpoint(checkpoint) as store:
        made, recording = recorded(load, store)
    assert recording.used(made.parameters()) == {"q", "v"}
    assert recording.missing(made.qkv.weight) == [(32, 48)]
    assert recording.missing(made.gate_up.bias) == [(0, 48)]
    assert sorted(problem.split(" ")[0] for problem in recording.problems) == ["bias", "cube", "gate", "merged", "up"]
    problems = "\n".join(recording.problems)
    assert "bias [48]: load_weights looks for the parameter 'bias', which the module does not have" in problems
    assert "up [24, 12]: load_weights raises ValueError: there is no shard 7; there are 0, 1" in problems
    assert "merged [48, 12]: load_weights raises ValueError: all shards must be [48], not [48, 12]" in problems
    assert "cube [4, 12, 12]: load_weights raises RuntimeError: Tensor.item() cannot be called on meta tensors; tensors have no" in problems


def test_values_for_a_tensor_of_ones_own_are_refused(checkpoint: Path) -> None:
    @only("merged")
    def load(made: Any, tensor: Tensor) -> None:
        own = torch.empty(48, 12)
        own.copy_(tensor)
        load_weight(made.gate_up.weight, own)

    with open_checkpoint(checkpoint) as store:
        _, recording = recorded(load, store)
    assert "neither a parameter nor made from one that was loaded" in recording.problems[0]


def test_a_load_that_stops_early_ends(checkpoint: Path) -> None:
    def load(made: Any, weights: Weights) -> None:
        raise RuntimeError("no")

    with open_checkpoint(checkpoint) as store:
        assert recorded(load, store)[1].problems == ["load_weights raises RuntimeError: no"]
        made, recording = recorded(lambda made, weights: None, store)
        assert not recording.problems
        assert recording.missing(made.qkv.weight) == [(0, 64)]


def test_planning_a_large_model_takes_no_memory() -> None:
    """A thousand layers of 4096 x 4096 and nothing but bookkeeping."""

    @dataclass(frozen=True)
    class Record:
        shape: tuple[int, ...]
        dtype: torch.dtype

    tensors = {f"layers.{layer}.{part}": Record((4096, 4096), torch.bfloat16) for layer in range(1000) for part in ("gate", "up")}
    with torch.device("meta"):
        made = nn.Module()
        made.layers = nn.ModuleList(build_merged_colwise_linear(4096, [4096, 4096], bias=False) for _ in range(1000))
    tracemalloc.start()
    table = [(".weight", f".{part}", shard) for shard, part in enumerate(("gate", "up"))]
    recording = record(made, lambda weights: load_stacked(made, weights, table), tensors, after=lambda: None)
    assert not recording.problems
    assert recording.parts(made.layers[999].weight, {name: record.shape for name, record in tensors.items()}) is not None
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_packed_modules_mapping_is_a_table() -> None:
    assert packed_table({"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}) == [
        (".qkv_proj", ".q_proj", "q"),
        (".qkv_proj", ".k_proj", "k"),
        (".qkv_proj", ".v_proj", "v"),
        (".gate_up_proj", ".gate_proj", 0),
        (".gate_up_proj", ".up_proj", 1),
    ]
