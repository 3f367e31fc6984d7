"""Where an adapter's tensors belong: each finds the base's tensor that it changes, and each that should change has its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

import torch

from flatlm.errors import CheckpointError
from flatlm.utilities.checkpoints.directory import Checkpoint
from flatlm.utilities.checkpoints.files import TensorRecord
from flatlm.utilities.checkpoints.lora_config import SUPPORTED, AdapterSettings
from flatlm.utilities.checkpoints.store import TensorStore

_PART = re.compile(
    r"(?P<module>.+?)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?P<bias>\.bias|\.weight)?"
)
_WRAPPERS = frozenset(("base_model", "model", "module", "transformer", "language_model", "text_model", "backbone", "gpt_neox"))
"""First parts of names, which differ between a checkpoint and the class that an adapter was trained with."""
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Product:
    """scale * b @ a, or its transpose; `magnitude` names DoRA's vector."""

    a: str
    b: str
    scale: float
    transposed: bool
    magnitude: str | None = None


@dataclass(frozen=True)
class Change:
    """How a base tensor differs: replaced by the adapter's `whole`, then the product or scale * `shift` added."""

    whole: str | None = None
    product: Product | None = None
    shift: tuple[str, float] | None = None


def plan_changes(base: TensorStore, stored: Checkpoint, settings: AdapterSettings) -> dict[str, Change]:
    """By the names of the base's tensors. `stored`: the adapter's own. Raises CheckpointError where the two do not go together."""
    return _Planner(base, stored, settings).plan()


class Names:
    """Finds a base's tensors by names that may begin otherwise."""

    def __init__(self, tensors: Mapping[str, TensorRecord]) -> None:
        self._tensors = tensors
        self._by_end: dict[str, list[str]] = {}
        for name in tensors:
            self._by_end.setdefault(_canonical(name), []).append(name)

    def find(self, name: str) -> list[str]:
        return [name] if name in self._tensors else self._by_end.get(_canonical(name), [])


class _Planner:
    def __init__(self, base: TensorStore, stored: Checkpoint, settings: AdapterSettings) -> None:
        self._base, self._stored, self._settings = base, stored, settings
        self._index = Names(base.tensors)

    def plan(self) -> dict[str, Change]:
        """Every tensor of the adapter finds its place, and every module that it should change has its tensors."""
        modules, wholes = dict[str, dict[str, str]](), dict[str, str]()
        for name, record in self._stored.tensors.items():
            if record.unsupported is None and not record.dtype.is_floating_point:
                self._wrong(name, f"is {record.dtype}, not a floating-point type; train or save the adapter again")
            plain = name.removeprefix("base_model.model.").replace(".modules_to_save", "").replace(".default", "")
            if match := _PART.fullmatch(plain):
                kind = match["kind"] + (".bias" if match["bias"] == ".bias" else "")
                self._note(modules.setdefault(match["module"], {}), kind, name)
            elif re.search(r"\.(lora_|token_adapter|original_module|parametrizations)", plain):
                self._wrong(name, f"is of a kind that FlatLM does not merge; {SUPPORTED}")
            else:
                self._note(wholes, plain.replace(".base_layer.", "."), name)
        if not modules and not wholes:
            raise CheckpointError(f"{self._stored.directory}: no tensors in it; save the adapter again")
        changes = dict[str, Change]()
        for plain, name in wholes.items():
            place = self._whole_place(plain, name)
            if place in changes:
                self._wrong(name, f"is meant for {place}, as {changes[place].whole!r} is; save the adapter again")
            changes[place] = Change(whole=name)
        for module, names in modules.items():
            first = next(iter(names.values()))
            weight = _HEAD if _is_head(module, changes) else self._place(f"{module}.weight", first)
            before = changes.get(weight, Change())
            if before.product is not None:
                self._wrong(first, f"is meant for {weight}, as {before.product.a!r} is; save the adapter again")
            shape = self._stored.tensors[before.whole].shape if before.whole else self._base.tensors[weight].shape
            changes[weight] = replace(before, product=self._product(module, weight, shape, names))
            if (bias := names.get("lora_B.bias")) is not None:
                place = self._place(f"{module}.bias", bias)
                self._require_shape(bias, self._base.tensors[place].shape)
                changes[place] = replace(changes.get(place, Change()), shift=(bias, self._settings.scale_of(module)))
        self._require_complete(set(modules), set(wholes))
        return changes

    def _note(self, place: dict[str, str], key: str, name: str) -> None:
        if key in place:
            self._wrong(name, f"and {place[key]!r} are the same one; save the adapter again")
        place[key] = name

    def _product(self, module: str, weight: str, shape: tuple[int, ...], names: dict[str, str]) -> Product:
        settings, stored = self._settings, self._stored.tensors
        embedding = "lora_embedding_A" in names or "lora_embedding_B" in names
        kinds = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        for kind, other in (kinds, kinds[::-1]):
            if kind not in names:
                present = names.get(other) or next(iter(names.values()))
                self._wrong(present, f"has no {kind} beside it; the file is incomplete: save the adapter again")
        for kind, key, asked in (
            ("lora_magnitude_vector", "use_dora", settings.dora),
            ("lora_B.bias", "lora_bias", settings.lora_bias and not embedding),
        ):
            if asked and kind not in names:
                self._wrong(names[kinds[0]], f"has no {kind} beside it, which {key} asks for; save the adapter again")
            if kind in names and not asked:
                self._wrong(names[kind], f"does not go with {settings.source.name}, where {key} is off; use files of one adapter")
        if extra := sorted(set(names) - {*kinds, "lora_magnitude_vector", "lora_B.bias"}):
            self._wrong(names[extra[0]], f"is of a kind that FlatLM does not merge; {SUPPORTED}")
        a, b = names[kinds[0]], names[kinds[1]]
        for name in (a, b):
            if len(stored[name].shape) != 2:
                self._wrong(name, f"has shape {list(stored[name].shape)}; FlatLM merges matrices, two-dimensional ones only")
        if len(shape) != 2:
            self._wrong(a, f"belongs to {weight} of shape {list(shape)}; FlatLM merges into matrices, two-dimensional ones only")
        transposed = embedding or self._is_transposed(weight, shape, stored[a].shape[1], stored[b].shape[0])
        rank, outputs, inputs = settings.rank_of(module), shape[transposed], shape[not transposed]
        if stored[a].shape[0] != rank or stored[b].shape[1] != rank:
            name = a if stored[a].shape[0] != rank else b
            self._wrong(
                name,
                f"has shape {list(stored[name].shape)}, but {settings.source.name} gives {module} rank {rank}; use files of one adapter",
            )
        self._require_shape(a, (rank, inputs))
        self._require_shape(b, (outputs, rank))
        magnitude = names.get("lora_magnitude_vector")
        if magnitude is not None and math.prod(stored[magnitude].shape) != outputs:
            self._require_shape(magnitude, (outputs,))
        for name in names.values():
            if not torch.isfinite(self._stored.read(name).float()).all():
                self._wrong(name, "has values that are not finite (NaN or infinity); train or save the adapter again")
        return Product(a, b, settings.scale_of(module), transposed, magnitude)

    def _is_transposed(self, weight: str, shape: tuple[int, ...], inputs: int, outputs: int) -> bool:
        """Whether a weight is stored [in, out]. Shapes say it; of a square one, the base's other weights or the configuration does.

        Only weights with a bias can be (transformers' Conv1D), and a model has them in its layers throughout.
        """
        if shape == (outputs, inputs) and inputs != outputs:
            return False
        bias = weight.removesuffix("weight") + "bias"
        if shape == (inputs, outputs) and inputs != outputs:
            return True
        if bias not in self._base.tensors:
            return False
        for name, record in self._base.tensors.items():
            other = self._base.tensors.get(name.removesuffix("weight") + "bias")
            if name.endswith(".weight") and other and len(record.shape) == 2 and record.shape[0] != record.shape[1] and _layer(name):
                return other.shape == record.shape[1:]
        return self._settings.transposed

    def _require_shape(self, name: str, shape: tuple[int, ...]) -> None:
        if (found := self._stored.tensors[name].shape) != shape:
            self._wrong(name, f"has shape {list(found)}, but the base asks for {list(shape)}; give the base that it was trained on")

    def _whole_place(self, plain: str, name: str) -> str:
        """The base's tensor that one of the adapter replaces. An embedding or a head may have other rows: the vocabulary's size."""
        if _canonical(plain) == _HEAD and not self._index.find(plain):
            return _HEAD  # of a base whose head is tied to its embedding
        place = self._place(plain, name)
        found, shape = self._stored.tensors[name].shape, self._base.tensors[place].shape
        if not (len(found) == len(shape) == 2 and found[1] == shape[1] and not _layer(place)):
            self._require_shape(name, shape)
        return place

    def _place(self, plain: str, name: str) -> str:
        found = self._index.find(plain)
        if len(found) == 1:
            return found[0]
        if found:
            self._wrong(name, f"could be meant for {' or '.join(found)} of {self._base.directory}; rename it as the base does")
        if _canonical(plain) == _HEAD:
            self._wrong(
                name,
                f"is for the head, whose own weights are neither in the adapter nor in {self._base.directory}, where it is tied to the "
                "embedding; save the adapter again with save_embedding_layers=True",
            )
        if plain.endswith(".bias"):
            self._wrong(name, f"is a bias, which {self._base.directory} does not have for it; merge it with PEFT, into a model that has")
        self._wrong(name, f"matches no tensor of {self._base.directory}; give the base that the adapter was trained on")

    def _require_complete(self, modules: set[str], wholes: set[str]) -> None:
        """What the configuration names and the base has, the adapter must bring: PEFT itself leaves it as it was."""
        bases = {name.removesuffix(".weight") for name in self._base.tensors if name.endswith(".weight")}
        places = {name.removesuffix(".weight") for module in modules for name in self._index.find(f"{module}.weight")}
        replaced = {found for name in wholes for found in self._index.find(name)}
        for target in self._settings.targets if self._settings.every_layer else ():
            expected = {name for name in bases if name == target or name.endswith(f".{target}")}
            if missing := sorted(expected - places):
                raise CheckpointError(
                    f"{self._stored.directory}: has no tensors for {', '.join(missing[:5])}, though {self._settings.source.name} names "
                    f"{target} in target_modules; save the adapter again, or give the base that it was trained on"
                )
        for module in self._settings.saved:
            expected = {name for name in self._base.tensors if f".{module}." in f".{name}"}
            if missing := sorted(expected - replaced):
                raise CheckpointError(
                    f"{self._stored.directory}: has no {', '.join(missing[:5])}, though {self._settings.source.name} names "
                    f"{module} in modules_to_save; save the adapter again"
                )

    def _wrong(self, tensor: str, what: str) -> NoReturn:
        raise CheckpointError(f"{self._stored.tensors[tensor].file}: tensor {tensor!r} {what}")


def _is_head(module: str, changes: Mapping[str, Change]) -> bool:
    """Whether the adapter itself has stored the weights of the head that it changes, as PEFT does."""
    return _canonical(f"{module}.weight") == _HEAD and _HEAD in changes


def _canonical(name: str) -> str:
    parts = name.split(".")
    while len(parts) > 2 and parts[0] in _WRAPPERS:
        parts = parts[1:]
    return ".".join(parts)


def _layer(name: str) -> bool:
    return any(part.isdecimal() for part in name.split("."))
