"""A model in a Python file of the user's own: its `__model__` is a `ComputeGraph`, or a family's `ConfigBuilder` with its tensor names.

The file is code, and is run: only where the user has named it, never because it lies in a checkpoint's directory.
"""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from flatlm.authoring.author_code import author_code
from flatlm.authoring.compute_graph.builder import build_flow
from flatlm.authoring.compute_graph.calls import ComputeGraph
from flatlm.authoring.user_code import load_file
from flatlm.errors import CustomModelError
from flatlm.utilities.checkpoints.open import open_checkpoint
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.registry import ConfigBuilder
from flatlm.utilities.weights.tensor_names import TensorNames

MODEL = "__model__"


@dataclass(frozen=True)
class GraphBuilder:
    """Builds the configuration of a model that a file's `ComputeGraph` describes; stands where a family's ConfigBuilder does."""

    graph_class: type[ComputeGraph]
    source: Path

    @property
    def tensor_names(self) -> TensorNames:
        """None: its weights are named in its calls."""
        return TensorNames(embedding="", final_norm="")

    @property
    def family(self) -> str:
        """The class's name."""
        return self.graph_class.__name__

    def build(self, hf_config: ConfigReader, model_path: Path) -> Any:
        """The `FlowConfig` for a checkpoint, of whose tensors names and shapes are read. What config.json says is the author's affair."""
        with open_checkpoint(model_path) as checkpoint:
            shapes = {name: tuple(record.shape) for name, record in checkpoint.tensors.items()}
        hf_config.skip(*hf_config.values)
        return build_flow(self.graph_class, hf_config.values, shapes, self.source)


@dataclass(frozen=True)
class FamilyBuilder:
    """A file's own ConfigBuilder, asked for the checkpoint at hand whatever its condition says."""

    builder: type[ConfigBuilder]
    source: Path
    tensor_names: TensorNames
    family: str

    def build(self, hf_config: ConfigReader, model_path: Path) -> Any:
        """The configuration that the builder makes."""
        with author_code(self.source, f"{self.builder.__name__}.build"):
            return self.builder.build(hf_config, model_path)


def custom_builder(path: Path) -> GraphBuilder | FamilyBuilder:
    """What builds the configuration of the model in a file. Raises CustomModelError, naming the file and where it can its line."""
    model = load_model_class(path)
    if issubclass(model, ComputeGraph):
        return GraphBuilder(model, path.resolve())
    names = getattr(model, "tensor_names", None)
    if not isinstance(names, TensorNames):
        raise CustomModelError(
            f"{path}: {model.__name__} has no tensor_names: set them to a flatlm.utilities.weights.tensor_names.TensorNames"
        )
    return FamilyBuilder(model, path.resolve(), names, getattr(model, "family", model.__name__))


def load_model_class(path: Path) -> type[Any]:
    """The file's `__model__`. Builders that it defines are not registered: they are for the checkpoint at hand only."""
    registered = list(ConfigBuilder._builders)
    try:
        module = load_file(path)
    finally:
        ConfigBuilder._builders[:] = registered
    return _model_of(module, path)


def _model_of(module: ModuleType, path: Path) -> type[Any]:
    bases = (ComputeGraph, ConfigBuilder)
    own = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, bases) and value not in bases]
    hint = f"{MODEL} = {own[0].__name__ if own else 'YourModel'}"
    if not hasattr(module, MODEL):
        raise CustomModelError(f"{path} does not say which class is the model: end it with {hint}")
    model = getattr(module, MODEL)
    if not isinstance(model, type) or not issubclass(model, bases) or model in bases:
        raise CustomModelError(f"{path}: {MODEL} = {model!r} is not a subclass of ComputeGraph or ConfigBuilder; such as {hint}")
    return model
