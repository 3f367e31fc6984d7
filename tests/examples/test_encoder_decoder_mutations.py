"""The parity suite fails for a wrong map: what is changed in the names or the configuration is refused, or seen in the logits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flatlm.errors import CheckpointError
from flatlm.layers.config import Activation
from flatlm.utilities import example
from flatlm.utilities.configs.registry import build_config
from flatlm.utilities.kinds import encoder_decoder as kind
from flatlm.utilities.weights.slots import Slot
from tests.examples.cases.encoder_decoders import CASES
from tests.examples.test_encoder_decoder_parity import TOLERANCE, eager_error, make

BY_NAME = {str(case): case for case in CASES}
Change = Callable[[Any], Any]


def swapped(first: str, second: str, *, encoder: bool = False) -> Change:
    """Two names of the decoder's (or the encoder's), each for what the other is."""

    def change(names: Any) -> Any:
        own = names.encoder if encoder else names
        own = replace(own, **{first: getattr(own, second), second: getattr(own, first)})
        return replace(names, encoder=own) if encoder else own

    return change


def of_the_other_stack(field: str) -> Change:
    """The encoder's name where the decoder's should be."""
    return lambda names: replace(names, **{field: getattr(names.encoder, field)})


def put(path: str, value: Any) -> Change:
    """Another value at a path into the configuration, in every block; a function of the old one where it is one."""

    def change(record: Any, keys: list[str]) -> Any:
        if isinstance(record, tuple):
            return tuple(change(item, keys) for item in record)
        if not keys:
            return value(record) if callable(value) else value
        return replace(record, **{keys[0]: change(getattr(record, keys[0]), keys[1:])})

    return lambda config: change(config, path.split("."))


NAMES: dict[str, tuple[Change, str]] = {
    "cross keys and values swapped": (swapped("cross_key_proj", "cross_value_proj"), "t5-v1 bart-plain mbart-plain"),
    "cross queries and keys swapped": (swapped("cross_query_proj", "cross_key_proj"), "t5-v1 bart-plain"),
    "cross attention reads the self-attention's queries": (
        lambda names: replace(names, cross_query_proj=names.attn_query_proj, attn_query_proj=names.cross_query_proj),
        "t5-v1 bart-plain",
    ),
    "norms of the two attentions swapped": (swapped("pre_attn_norm", "pre_cross_norm"), "t5-v1 bart-plain mbart-plain"),
    "norms of cross attention and feed-forward swapped": (swapped("pre_cross_norm", "pre_ff_norm"), "t5-v1 bart-plain"),
    "keys and values of the encoder swapped": (swapped("attn_key_proj", "attn_value_proj", encoder=True), "t5-v1 bart-plain"),
    "gate and up swapped": (swapped("ff_gate_proj", "ff_up_proj"), "t5-v1_1 mt5-plain"),
    "gate and up of the encoder swapped": (swapped("ff_gate_proj", "ff_up_proj", encoder=True), "t5-v1_1"),
}
REFUSED: dict[str, tuple[Change, str]] = {
    "relative bias of the other stack": (of_the_other_stack("relative_bias"), "t5-v1"),
    "positions of the other stack": (of_the_other_stack("position_embedding"), "bart-plain"),
    "embedding norm of the other stack": (of_the_other_stack("embedding_norm"), "bart-plain"),
    "final norm of the other stack": (of_the_other_stack("final_norm"), "t5-v1 mbart-plain"),
    "no bias of the logits": (lambda names: replace(names, logits_bias="bias"), "bart-plain"),
}
CONFIGS: dict[str, tuple[Change, str]] = {
    "encoder's buckets of one direction": (put("encoder.relative_bias.bidirectional", False), "t5-v1 mt5-plain"),
    "decoder's buckets of both directions": (put("decoder.relative_bias.bidirectional", True), "t5-v1 mt5-plain"),
    "another greatest distance": (put("encoder.relative_bias.max_distance", 24), "t5-v1"),
    "another greatest distance of the decoder": (put("decoder.relative_bias.max_distance", 24), "t5-v1"),
    "positions one too far": (put("encoder.position_embedding.offset", 1), "bart-plain mbart-plain"),
    "positions of the decoder one too far": (put("decoder.position_embedding.offset", 1), "bart-plain mbart-plain"),
    "scores scaled": (put("cross.scale", 0.25), "t5-v1"),
    "scores of the encoder scaled": (put("encoder.blocks.attention.scale", 0.25), "t5-v1"),
    "scores not scaled": (put("cross.scale", 1.0), "bart-plain"),
    "head not scaled": (put("head_scale", 1.0), "t5-v1 t5-gated_and_scaled"),
    "head scaled": (put("head_scale", 48**-0.5), "t5-v1_1 mt5-plain mt5-tied"),
    "embedding not scaled": (put("embedding_scale", 1.0), "bart-scaled_embedding mbart-scaled_embedding"),
    "norms before their branches": (put("encoder.blocks.norm_after", False), "bart-plain"),
    "norms of the decoder after its branches": (put("decoder.blocks.norm_after", True), "mbart-plain"),
    "another activation": (put("decoder.blocks.feed_forward.activation", Activation.SILU), "t5-v1 bart-plain"),
    "exact gelu where it is approximate": (put("encoder.blocks.feed_forward.activation", Activation.GELU), "t5-v1_1"),
    "eps": (put("decoder.final_norm.eps", 1e-1), "t5-v1 mbart-plain"),
    "eps of cross attention": (put("cross_norm.eps", 1e-1), "t5-v1 bart-plain"),
}


def cases(table: dict[str, tuple[Change, str]]) -> list[Any]:
    return [pytest.param(change, name, id=f"{why}-{name}") for why, (change, names) in table.items() for name in names.split()]


def error_with(
    monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, *, names: Change = lambda names: names, config: Change = lambda config: config
) -> float:
    """The largest difference of a logit where what is read by was changed."""

    def built(directory: Path, *more: Any) -> tuple[Any, Any]:
        found, builder = build_config(directory, *more)
        return config(found), SimpleNamespace(tensor_names=names(builder.tensor_names))

    reference = make(BY_NAME[name], folder)
    monkeypatch.setattr(example, "build_config", built)
    return eager_error(reference, folder, 19, 7)


@pytest.mark.parametrize(("change", "name"), cases(NAMES))
def test_wrong_names_are_seen(change: Change, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert error_with(monkeypatch, tmp_path, name, names=change) > 10 * TOLERANCE


@pytest.mark.parametrize(("change", "name"), cases(REFUSED))
def test_names_that_leave_a_tensor_over_are_refused(change: Change, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Total both ways: what the other stack's name should have been is not used, or what was asked for is missing."""
    with pytest.raises(CheckpointError, match=r"is not used by the model|is missing"):
        error_with(monkeypatch, tmp_path, name, names=change)


@pytest.mark.parametrize(("change", "name"), cases(CONFIGS))
def test_wrong_configurations_are_seen(change: Change, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert error_with(monkeypatch, tmp_path, name, config=change) > 10 * TOLERANCE


def test_rows_of_the_merged_projection_in_another_order_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which no name can say: [v | k]."""
    slots = kind.encoder_decoder_slots

    def turned(*arguments: Any) -> list[Slot]:
        return [replace(slot, parts=slot.parts[::-1]) if "key_value" in slot.name else slot for slot in slots(*arguments)]

    monkeypatch.setattr(kind, "encoder_decoder_slots", turned)
    assert error_with(monkeypatch, tmp_path, "bart-plain") > 10 * TOLERANCE
