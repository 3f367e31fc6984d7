"""Encoders as they are published, and what FlatLM plans for them: the counterpart of `published_models.py`.

`published_encoders.json` holds, for each id on the hub, its config.json in the published form and its number of parameters, to as many
digits as were published. `stored`: the class whose tensors the file holds, where it is another than the architecture's;
`pooler_stored`: a pooler that the file holds beside its class's tensors; `older_norms`: its norms' parameters are called gamma and beta;
`pooling`, `normalised`: what the modules of sentence-transformers beside it say. Nothing is downloaded: plans need names and shapes only.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from flatlm.utilities.exporter import ExportPlan, ExportRequest, plan_export
from flatlm.utilities.reading import Reading
from tools.published_models import NamesOnly, write_names
from tools.published_tensors import Shapes

POOLING_MODES = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}


@dataclass(frozen=True)
class PublishedEncoder:
    """A checkpoint on the hub. `parameters`: as published; trailing zeros are digits that were not."""

    name: str
    parameters: int
    config: Mapping[str, Any] = field(repr=False, hash=False)
    stored: str | None = None
    pooler_stored: str | None = None
    older_norms: bool = False
    pooling: str | None = None
    normalised: bool = False

    def __str__(self) -> str:
        return self.name

    def agrees(self, count: int) -> bool:
        """Whether a model of so many parameters can be the published one."""
        unknown = len(str(self.parameters)) - len(str(self.parameters).rstrip("0"))
        return round(count, -unknown) == self.parameters


def load_published_encoders() -> tuple[PublishedEncoder, ...]:
    """The table, in the order of the file: by family."""
    table = json.loads(Path(__file__).with_name("published_encoders.json").read_text("utf-8"))
    return tuple(PublishedEncoder(name, **facts) for name, facts in table.items())


@cache
def stored_shapes(model: PublishedEncoder) -> Shapes:
    """The tensors of the published file: those of transformers' class on the meta device, under the names that the hub has."""
    model_class = getattr(transformers, model.stored or model.config["architectures"][0])
    with torch.device("meta"):
        reference = model_class(model_class.config_class(**model.config))
    tied = reference._tied_weights_keys or {}
    shapes = {name: tuple(tensor.shape) for name, tensor in reference.state_dict().items() if name not in tied}
    if model.pooler_stored is not None:
        width = model.config["hidden_size"]
        shapes |= {f"{model.pooler_stored}.weight": (width, width), f"{model.pooler_stored}.bias": (width,)}
    if model.older_norms:
        return {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): shapes[name] for name in shapes
        }
    return shapes


def plan_encoder(model: PublishedEncoder, shapes: Shapes, task: str | None = None) -> ExportPlan:
    """The plan of an export by default settings from a checkpoint of these tensors. Raises what `plan_export` raises."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        (directory / "config.json").write_text(json.dumps(model.config), "utf-8")
        write_names(directory / "model.safetensors", shapes)
        if model.pooling is not None:
            _write_modules(directory, model)
        return plan_export(NamesOnly(shapes, directory), ExportRequest(directory, directory / "model.tflite", reading=Reading(task=task)))


def _write_modules(directory: Path, model: PublishedEncoder) -> None:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if model.normalised else [])]
    modules = [{"idx": i, "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (path, kind) in enumerate(kinds)]
    (directory / "modules.json").write_text(json.dumps(modules), "utf-8")
    (directory / "1_Pooling").mkdir()
    modes = {mode: name == model.pooling for name, mode in POOLING_MODES.items()}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(modes), "utf-8")
