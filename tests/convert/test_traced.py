"""Foreign modules, taken apart: the stamped file against the one whose modules were compiled whole, and what is handed to the converter."""

import numpy as np
import pytest
import torch
from torch import nn

from flatlm.convert.compile import compile_pieces
from flatlm.convert.decoder import stamp_decoder
from flatlm.convert.in_memory import InMemory
from flatlm.convert.link import link_and_write
from flatlm.convert.signatures import signature_specs
from flatlm.convert.stamp import stamp
from flatlm.convert.traced import SplitSignature, TracedSignature, split_signature, stamp_traced, whole
from flatlm.convert.weights import WeightLayout
from flatlm.quantize.recipes import RECIPES
from tests.convert.foreign import Layer, Model, TwoStacks, decoder_signature, randomised, signature_of, weights
from tests.models import Signatures, random_decoder, tiny_config


def operators(split: SplitSignature) -> int:
    """How many the converter is given."""
    return sum(len(piece.call.graph.nodes) for piece in split.pieces)


def layers_of(split: SplitSignature) -> dict[str, list[int]]:
    """Which layers each piece is stamped for."""
    found: dict[str, list[int]] = {}
    for step in split.plan.steps:
        if step.layer is not None:
            found.setdefault(step.piece, []).append(step.layer)
    return found


def kinds(split: SplitSignature) -> list[list[int]]:
    return list(layers_of(split).values())


KINDS = (("swapped", 32), ("", 32), ("", 16), ("kept", 32), ("", 32), ("", 16))
FOREIGN = {
    "plain": lambda: Model("plain", [Layer() for _ in range(3)], tied=True),
    "skip": lambda: Model("skip", [Layer() for _ in range(5)], skip=True),
    "kinds": lambda: Model("kinds", [Layer(wiring=wiring, width=width) for wiring, width in KINDS]),
    "tap": lambda: Model("tap", [Layer() for _ in range(3)], tap=1),
    "constants": lambda: Model("constants", [Layer(constant=value) for value in (0.5, 2.0, 0.5)]),
    "shared": lambda: Model("shared", [Layer()], times=3),
    "rounds": lambda: Model("rounds", [Layer(), Layer()], times=2),
    "stacks": lambda: TwoStacks("stacks"),
}

COMPILED_WHOLE = ("skip", "constants", "stacks")


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    return {name: randomised(make(), seed) for seed, (name, make) in enumerate(FOREIGN.items())}


@pytest.fixture(scope="module")
def signatures(models: dict[str, nn.Module]) -> dict[str, TracedSignature]:
    return {name: signature_of(name, model) for name, model in models.items()}


@pytest.fixture(scope="module")
def files(models: dict[str, nn.Module], signatures: dict[str, TracedSignature], tmp_path_factory) -> tuple[Signatures, Signatures]:
    """A signature for each model, from its parts; and for some of them, whole."""
    uncut = [whole(signatures[name]) for name in COMPILED_WHOLE]
    graphs = {
        "split": stamp_traced(list(signatures.values())),
        "whole": stamp(compile_pieces([piece for each in uncut for piece in each.pieces]), [each.plan for each in uncut]),
    }
    layout = WeightLayout({name: InMemory(value) for name, value in weights(models).items()}, RECIPES["none"])
    folder = tmp_path_factory.mktemp("traced")
    for name, graph in graphs.items():
        with (folder / f"{name}.tflite").open("w+b") as file:
            link_and_write(graph, layout, file.fileno())
    return Signatures(folder / "split.tflite"), Signatures(folder / "whole.tflite")


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_stamped_from_parts_computes_what_the_whole_module_does(name: str, models, signatures, files) -> None:
    inputs = {key: value.numpy() for key, value in signatures[name].inputs.items()}
    split, uncut = (file.run(name, inputs) if file is files[0] or name in COMPILED_WHOLE else None for file in files)
    with torch.inference_mode():
        eager = models[name](**{key: value.clone() for key, value in signatures[name].inputs.items()})
    assert split.keys() == eager.keys()
    for key, value in eager.items():
        if uncut is not None:
            np.testing.assert_array_equal(split[key], uncut[key], err_msg=key)
        np.testing.assert_allclose(split[key], value.numpy(), atol=1e-5, err_msg=key)


def test_layers_are_compiled_once_for_each_kind(signatures) -> None:
    split = {name: split_signature(signature) for name, signature in signatures.items()}
    assert kinds(split["plain"]) == [[0, 1, 2]]
    assert kinds(split["kinds"]) == [[0], [1, 4], [2, 5], [3]]
    assert kinds(split["tap"]) == [[0, 1, 2]]
    assert kinds(split["constants"]) == [[0, 2], [1]]
    assert len(kinds(split["skip"])) == 2  # the first two have nothing to skip over
    assert kinds(split["stacks"]) == [[0, 1, 2], [0, 1]]
    assert len(split["shared"].pieces) == 3
    assert len(split["shared"].plan.steps) == 5


def test_layers_that_differ_in_one_number_are_two_kinds() -> None:
    same = split_signature(signature_of("a", Model("a", [Layer(1e-5), Layer(1e-5), Layer(1e-5)])))
    other = split_signature(signature_of("a", Model("a", [Layer(1e-5), Layer(1.1e-5), Layer(1e-5)])))
    assert kinds(same) == [[0, 1, 2]]
    assert kinds(other) == [[0, 2], [1]]


def test_where_no_two_layers_are_equal_the_module_is_compiled_whole() -> None:
    split = split_signature(signature_of("a", Model("a", [Layer(width=8 * (index + 2)) for index in range(3)])))
    assert [piece.name for piece in split.pieces] == ["a/whole"]
    assert [step.piece for step in split.plan.steps] == ["a/whole"]


def test_the_converter_is_given_as_much_for_twelve_layers_as_for_two() -> None:
    foreign = [split_signature(signature_of("a", Model("a", [Layer() for _ in range(depth)]))) for depth in (2, 4, 12)]
    assert len({operators(split) for split in foreign}) == 1
    assert [kinds(split) for split in foreign] == [[list(range(depth))] for depth in (2, 4, 12)]
    decoders = [random_decoder(tiny_config(layers=depth, window=4, plain=True), longest_step=3) for depth in (4, 12)]
    spec = signature_specs((3,), prefill_logits=False)[0]
    assert len({operators(split_signature(decoder_signature(model, spec))) for model in decoders}) == 1


def test_a_decoder_is_stamped_operator_by_operator_as_from_its_own_parts() -> None:
    """Two kinds of layers, rings for one of them, a tied head; the last layer's feed-forward is read by nobody in the prefill."""
    specs = signature_specs((3,), prefill_logits=False)
    model = random_decoder(tiny_config(layers=5, plain=True, tied=True, window=6), longest_step=3)
    expected = stamp_decoder(model.config, model.geometry, specs)
    found = stamp_traced([decoder_signature(model, spec) for spec in specs])
    for ours, theirs in zip(found.subgraphs, expected.subgraphs, strict=True):
        assert _listing(found, ours) == _listing(expected, theirs)


def _listing(model, graph) -> list[tuple]:
    """Every operator: its code, its options, the weight it names, and the shapes it reads and gives."""
    return [
        (
            model.operatorCodes[op.opcodeIndex].builtinCode,
            bytes(getattr(op.builtinOptions2, "backendConfig", b"")),
            *(tuple(graph.tensors[index].shape) if graph.tensors[index].shape is not None else () for index in (*op.inputs, *op.outputs)),
        )
        for op in graph.operators
    ]
