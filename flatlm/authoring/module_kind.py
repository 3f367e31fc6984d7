"""The kind of an author's module (`kinds/table.py`)."""

from typing import TYPE_CHECKING

from flatlm.authoring.authored import AuthoredModel
from flatlm.authoring.config import AuthoredConfig
from flatlm.authoring.module_graph import AuthoredGraph
from flatlm.authoring.weight_plan import plan_weights
from flatlm.layers.kv_cache import CacheGeometry
from flatlm.utilities.checkpoints.store import TensorStore
from flatlm.utilities.kinds.kind import GraphPlan
from flatlm.utilities.kinds.lengths import step_plan
from flatlm.utilities.weights.loader import LoadPlan
from flatlm.utilities.weights.tensor_names import TensorNames

if TYPE_CHECKING:
    from flatlm.utilities.exporter import ExportRequest


class AuthoredModules:
    """The kind of every `AuthoredConfig`. Its files are decoders' files: whatever runs or judges those does these."""

    def load_plan(self, config: AuthoredConfig, checkpoint: TensorStore, names: TensorNames) -> LoadPlan:
        """What the class's `load_weights` does. Raises CheckpointError."""
        return plan_weights(self.build(config, 2), checkpoint)

    def build(self, config: AuthoredConfig, length: int) -> AuthoredModel:
        """With whole caches of `length` slots."""
        return AuthoredModel(config, CacheGeometry(min(length, config.max_positions)))

    def graph(self, config: AuthoredConfig, request: "ExportRequest") -> GraphPlan:
        """`prefill_<T>` for each length, and `decode`. Raises ExportError."""
        facts = {"module": config.reference.name}
        return step_plan(AuthoredGraph, config, config.attentions, request, facts)
