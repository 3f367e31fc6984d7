"""Viterbi's path is the best of all paths, by the definition of pytorch-crf written out; a CRF goes through a manifest unchanged."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from flatlm.errors import CheckpointError, ConfigError, RuntimeFileError
from flatlm.tasks.crf import Crf
from flatlm.tasks.crf_loss import crf_loss
from flatlm.utilities.checkpoints.directory import Checkpoint
from flatlm.utilities.configs.crf_facts import NEVER, encode_crf, read_crf


def by_definition(emissions, transitions, start, end, path) -> float:
    """What pytorch-crf's `_compute_score` adds up, a term at a time."""
    total = float(start[path[0]]) + float(emissions[0][path[0]])
    for step in range(1, len(path)):
        total += float(transitions[path[step - 1]][path[step]]) + float(emissions[step][path[step]])
    return total + float(end[path[-1]])


@settings(max_examples=80, deadline=None)
@given(labels=st.integers(1, 4), tokens=st.integers(1, 5), seed=st.integers(0, 2**32 - 1), coarse=st.booleans())
def test_the_path_is_the_best_of_all(labels: int, tokens: int, seed: int, coarse: bool) -> None:
    generator = np.random.default_rng(seed)

    def numbers(*shape: int) -> np.ndarray:
        values = generator.normal(size=shape) * 3
        return (values.round() if coarse else values).astype(np.float32)  # whole numbers: many paths are equally good

    emissions, transitions, start, end = numbers(tokens, labels), numbers(labels, labels), numbers(labels), numbers(labels)
    crf = Crf(transitions, start, end)
    path = crf.decode(emissions)
    scores = {each: by_definition(emissions, transitions, start, end, each) for each in product(range(labels), repeat=tokens)}
    assert path.shape == (tokens,)
    assert scores[tuple(path)] == pytest.approx(max(scores.values()), abs=1e-9)
    assert crf.score(emissions, path) == pytest.approx(scores[tuple(path)], abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(labels=st.integers(1, 4), tokens=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_the_loss_is_of_all_paths(labels: int, tokens: int, seed: int) -> None:
    """-log of a path's share of e^score over all paths, written out; what is ignored behind a text does not count."""
    generator = torch.Generator().manual_seed(seed)
    names = {"crf.transitions": (labels, labels), "crf.start_transitions": (labels,), "crf.end_transitions": (labels,)}
    crf = {name: torch.randn(shape, generator=generator) for name, shape in names.items()}
    emissions = torch.randn(1, tokens + 2, labels, generator=generator)
    path = torch.randint(0, labels, (tokens,), generator=generator)
    parts = [emissions[0], *crf.values()]
    scores = [by_definition(*parts, each) for each in product(range(labels), repeat=tokens)]
    expected = np.log(np.sum(np.exp(scores))) - by_definition(*parts, path.tolist())
    given = torch.cat([path, torch.tensor([-100, -100])])[None]
    assert float(crf_loss(crf, emissions, given)) == pytest.approx(expected, abs=1e-4)
    assert float(crf_loss(crf, emissions.expand(3, -1, -1), given.expand(3, -1))) == pytest.approx(expected, abs=1e-4)
    flagai = crf_loss({"crf_layer.trans": crf["crf.transitions"]}, emissions, given)
    plain = {name: value if name == "crf.transitions" else torch.zeros_like(value) for name, value in crf.items()}
    assert float(flagai) == pytest.approx(float(crf_loss(plain, emissions, given)), abs=1e-5)
    with pytest.raises(ConfigError, match="labels of a CRF"):
        crf_loss(crf, emissions, torch.full((1, tokens + 2), -100))


def test_transitions_go_from_row_to_column() -> None:
    """Of two labels that the emissions cannot tell apart, 1 may follow 0 and 0 may not follow 1."""
    forbidden = np.array([[0, 0], [-100, 0]], np.float32)
    nothing = np.zeros(2, np.float32)
    emissions = np.array([[0, 1], [1, 0]], np.float32)  # by themselves 1, 0
    assert Crf(forbidden, nothing, nothing).decode(emissions).tolist() in ([0, 0], [1, 1])
    assert Crf(forbidden.T, nothing, nothing).decode(emissions).tolist() == [1, 0]


def test_no_tokens_and_other_labels() -> None:
    crf = Crf(np.zeros((3, 3), np.float32), np.zeros(3, np.float32), np.zeros(3, np.float32))
    assert crf.decode(np.zeros((0, 3), np.float32)).shape == (0,)
    with pytest.raises(RuntimeFileError, match=r"\[2, 4\].*3 labels"):
        crf.decode(np.zeros((2, 4), np.float32))


def store(tensors: dict[str, torch.Tensor], folder) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return Checkpoint.open(folder)


def test_pytorch_crf_in_a_checkpoint(tmp_path) -> None:
    torch.manual_seed(0)
    parts = {"crf.transitions": torch.randn(5, 5), "crf.start_transitions": torch.randn(5), "crf.end_transitions": torch.randn(5)}
    with store({f"head.{name}": value for name, value in parts.items()} | {"other.weight": torch.ones(2)}, tmp_path) as checkpoint:
        crf = Crf.from_facts(read_crf(checkpoint, 5))
    for got, name in ((crf.transitions, "transitions"), (crf.start, "start_transitions"), (crf.end, "end_transitions")):
        assert got.tobytes() == parts[f"crf.{name}"].numpy().tobytes()


def test_flagais_layer_begins_with_label_0(tmp_path) -> None:
    torch.manual_seed(1)
    trans = torch.randn(4, 4)
    with store({"crf_layer.trans": trans}, tmp_path) as checkpoint:
        crf = Crf.from_facts(read_crf(checkpoint, 4))
    assert crf.transitions.tobytes() == trans.numpy().tobytes()
    assert crf.start.tolist() == [0, NEVER, NEVER, NEVER] and not crf.end.any()
    emissions = np.full((3, 4), 0, np.float32)
    emissions[0, 2] = 1000
    assert crf.decode(emissions)[0] == 0


@pytest.mark.parametrize(
    ("tensors", "labels", "message"),
    [
        ({"crf.transitions": torch.ones(3, 3), "crf.end_transitions": torch.ones(3)}, 3, "without its start_transitions"),
        ({"crf_layer.trans": torch.ones(3, 3)}, 4, r"crf_layer.trans has shape \[3, 3\]; the labels ask for \[4, 4\]"),
        ({"crf_layer.trans": torch.full((3, 3), torch.nan)}, 3, "not finite"),
        ({"crf_layer.trans": torch.ones(97, 97)}, 97, "does not fit"),
    ],
)
def test_what_cannot_be_decoded_is_refused(tensors: dict[str, torch.Tensor], labels: int, message: str, tmp_path) -> None:
    with store(tensors, tmp_path) as checkpoint, pytest.raises(CheckpointError, match=message):
        read_crf(checkpoint, labels)


def test_no_crf(tmp_path) -> None:
    with store({"mycrf.transitions": torch.ones(3, 3)}, tmp_path) as checkpoint:
        assert read_crf(checkpoint, 3) is None


def test_damaged_facts() -> None:
    zero = np.zeros(2, np.float32)
    facts = encode_crf(np.zeros((2, 2), np.float32), zero, zero)
    for damage in ({"labels": 3}, {"start": 5}, {"end": "AA"}):
        with pytest.raises(RuntimeFileError, match="damaged"):
            Crf.from_facts(facts | damage)
    with pytest.raises(RuntimeFileError, match="damaged"):
        Crf.from_facts(None)
