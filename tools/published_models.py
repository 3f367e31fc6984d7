"""Checkpoints as they are published: `config.json` and the number of parameters of each, and what FlatLM plans for them.

`published_models.json` holds the facts: for each id on the hub its config.json in the published (often old) form, without what does not
change a model (names of Python files, writers' versions), and its number of parameters, to as many digits as were published.
`tied_head_stored`: that number, like the files, has the tied head once more. Nothing is downloaded: plans need names and shapes only.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from flatlm.layers.kv_cache import CacheGeometry, empty_caches
from flatlm.utilities.checkpoints.files import TensorRecord
from flatlm.utilities.exporter import ExportPlan, ExportRequest, plan_export
from tools.published_tensors import Shapes, hub_forms

LONG_CACHE = 8192


@dataclass(frozen=True)
class PublishedModel:
    """A checkpoint on the hub. `parameters`: as published; trailing zeros are digits that were not."""

    name: str
    parameters: int
    config: Mapping[str, Any] = field(repr=False, hash=False)
    tied_head_stored: bool = False

    def __str__(self) -> str:
        return self.name

    def agrees(self, count: int) -> bool:
        """Whether a model of so many parameters can be the published one."""
        unknown = len(str(self.parameters)) - len(str(self.parameters).rstrip("0"))
        return round(count, -unknown) == self.parameters


def load_published_models() -> tuple[PublishedModel, ...]:
    """The table, in the order of the file: by family, small models first."""
    table = json.loads(Path(__file__).with_name("published_models.json").read_text("utf-8"))
    return tuple(PublishedModel(name, **facts) for name, facts in table.items())


class NamesOnly:
    """A checkpoint of which only names and shapes are known. Reading it is a bug."""

    def __init__(self, shapes: Shapes, directory: Path) -> None:
        self.directory = directory
        self.tensors = {name: TensorRecord(name, tuple(shape), torch.bfloat16, directory) for name, shape in shapes.items()}

    def rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        raise AssertionError(f"a plan reads no weights: {name}")

    def read(self, name: str) -> torch.Tensor:
        raise AssertionError(f"a plan reads no weights: {name}")

    def fingerprint(self) -> str:
        raise AssertionError("a plan reads no weights")

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


@cache
def published_plan(model: PublishedModel) -> ExportPlan:
    """The plan of an export by default settings, from the checkpoint as it was published. Raises what `plan_export` raises."""
    return plan_model(model, hub_forms(model.config)["published"])


def plan_model(model: PublishedModel, shapes: Shapes) -> ExportPlan:
    """The same from a checkpoint of these tensors."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        (directory / "config.json").write_text(json.dumps(model.config), "utf-8")
        write_names(directory / "model.safetensors", shapes)
        request = ExportRequest(directory, directory / "model.tflite")
        return plan_export(NamesOnly(shapes, directory), request)


def write_names(path: Path, shapes: Shapes) -> None:
    """A file of empty tensors of these names: a config builder may look which there are."""
    header = json.dumps({name: {"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]} for name in shapes}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def cache_bytes(plan: ExportPlan, length: int | None = None, *, rings: bool = True) -> int:
    """Bytes of all KV caches for a context of so many tokens (None: the default); without rings every layer keeps them all."""
    geometry = CacheGeometry(length or plan.shape.context, max(plan.shape.lengths) if rings else None)
    caches = empty_caches(plan.config, geometry, device="meta")
    return sum(tensor.numel() * tensor.element_size() for cache in caches for tensor in cache)
