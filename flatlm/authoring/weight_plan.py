"""The plan of weights of an author's module: what its `load_weights` does, recorded. Total both ways."""

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from flatlm.authoring.author_code import prints_aside
from flatlm.authoring.authored import AuthoredModel, update_weights
from flatlm.authoring.load_weights import load_stacked, packed_table
from flatlm.authoring.recording import ComputedWeight, Recording, record
from flatlm.errors import ConfigError
from flatlm.utilities.checkpoints.store import TensorStore
from flatlm.utilities.weights.loader import LoadPlan, PlannedWeight, disagreement
from flatlm.utilities.weights.slots import Slot

INERT_TENSORS = ("*rotary_emb.inv_freq", "*rotary_emb.cos_cached", "*rotary_emb.sin_cached", "*.attn.masked_bias")
"""Tensors that checkpoints carry and that no number depends on. A class names others with `ignored_weights`, a list of such patterns."""


def plan_weights(model: AuthoredModel, checkpoint: TensorStore) -> LoadPlan:
    """Where every parameter comes from. Raises one CheckpointError that lists all that does not fit; reads no tensor."""
    module = model.module
    with prints_aside():
        recording = record(module, lambda weights: _load(module, weights), checkpoint.tensors, after=lambda: update_weights(module))
    file_names = dict(model.config.names)
    parameters = dict(module.named_parameters())
    used = recording.used(parameters.values())
    patterns = _ignored(module)
    if model.config.tied_head:
        patterns.append("lm_head.weight")
    rest = [name for name in checkpoint.tensors if name not in used]
    ignored = tuple(name for name in rest if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
    unfilled = {name: missing for name, parameter in parameters.items() if (missing := recording.missing(parameter))}
    problems = [*recording.problems]
    spoken = " ".join(recording.problems)
    unused = [name for name in rest if name not in ignored and f"{name} [" not in spoken]
    problems += [f"{name} {list(checkpoint.tensors[name].shape)} is not used by load_weights{_near(name, unfilled)}" for name in unused]
    problems += [_unfilled(name, parameters[name], missing, unused, model) for name, missing in unfilled.items()]
    whole = all(missing == [(0, parameters[name].shape[0])] for name, missing in unfilled.items())
    if parameters and len(unfilled) == len(parameters) and whole and not recording.problems:
        problems = [f"load_weights fills none of the {len(parameters)} parameters of {type(module).__name__}"]
    if problems:
        raise disagreement(checkpoint, problems)
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    weights = {
        file_names.get(name, name): _planned(file_names.get(name, name), parameter, recording, checkpoint, shapes)
        for name, parameter in parameters.items()
    }
    return LoadPlan(weights, ignored)


def _load(module: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> None:
    """The author's `load_weights`, of names as their `rename_weight` gives them; by their names where there is none."""
    rename = getattr(module, "rename_weight", None)
    named = weights if rename is None else ((rename(name), tensor) for name, tensor in weights)
    load = getattr(module, "load_weights", None)
    if load is not None:
        load(named)
        return
    patterns = _ignored(module)
    kept = ((name, tensor) for name, tensor in named if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
    load_stacked(module, kept, packed_table(getattr(module, "packed_modules_mapping", {})))


def _ignored(module: nn.Module) -> list[str]:
    """Patterns of tensors that are left out. Raises ConfigError where the class has something else."""
    given = getattr(module, "ignored_weights", ())
    if not isinstance(given, tuple | list) or not all(isinstance(pattern, str) for pattern in given):
        raise ConfigError(f"{type(module).__name__}.ignored_weights = {given!r} must be a list of patterns, such as ['*.inv_freq']")
    return [*INERT_TENSORS, *given]


def _planned(
    name: str, parameter: Tensor, recording: Recording, checkpoint: TensorStore, shapes: dict[str, tuple[int, ...]]
) -> PlannedWeight:
    parts = recording.parts(parameter, shapes)
    floats = parts is not None and all(checkpoint.tensors[part.tensor].dtype.is_floating_point for part in parts)
    if parts is None or not floats:
        return ComputedWeight(name, parameter, recording, checkpoint)
    return PlannedWeight(Slot(name, parts), checkpoint)


def _unfilled(name: str, parameter: Tensor, missing: Sequence[tuple[int, int]], unused: Sequence[str], model: AuthoredModel) -> str:
    rows = "" if missing == [(0, parameter.shape[0])] else " rows " + ", ".join(f"{start} to {stop - 1}" for start, stop in missing) + " of"
    hint = _near(name, unused)
    if model.config.names and dict(model.config.names).get(name) == "lm_head.weight" and not hint:
        hint = ": a tied head shares its weight in update_weights(), self.lm_head.weight = self.model.embed_tokens.weight"
    return f"load_weights does not fill{rows} the parameter {name} {list(parameter.shape)}{hint}"


def _near(name: str, others: Any) -> str:
    close = difflib.get_close_matches(name, [other for other in others if other != name], 1, 0.6)
    return f"; near it is {close[0]}" if close else ""
