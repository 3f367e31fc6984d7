"""The kind of model that is a flow: what the exporter must know of it."""

from typing import TYPE_CHECKING

from flatlm.authoring.compute_graph.config import FlowConfig
from flatlm.authoring.compute_graph.graph import FlowGraph
from flatlm.authoring.compute_graph.model import FlowModel, build_on_meta
from flatlm.errors import CheckpointError
from flatlm.layers.kv_cache import CacheGeometry
from flatlm.utilities.checkpoints.lora import LoraStore
from flatlm.utilities.checkpoints.store import TensorStore
from flatlm.utilities.kinds.kind import GraphPlan
from flatlm.utilities.kinds.lengths import step_plan
from flatlm.utilities.weights.loader import LoadPlan, plan_slots
from flatlm.utilities.weights.tensor_names import TensorNames

if TYPE_CHECKING:
    from flatlm.utilities.exporter import ExportRequest


class Flows:
    """The kind of every `FlowConfig`. Its files are run and judged as decoders', whose inputs and outputs they have."""

    def load_plan(self, config: FlowConfig, checkpoint: TensorStore, names: TensorNames) -> LoadPlan:
        """Raises CheckpointError."""
        if isinstance(checkpoint, LoraStore) and config.tied_head:
            raise CheckpointError(
                f"{checkpoint.directory}: a custom model whose head is tied to its embedding takes no adapter: merge it into a copy before"
            )
        return plan_slots(config.slots, checkpoint, names, ignored=config.ignored)

    def build(self, config: FlowConfig, length: int) -> FlowModel:
        """With whole caches of `length` slots."""
        return build_on_meta(config, CacheGeometry(min(length, config.max_positions)))

    def graph(self, config: FlowConfig, request: "ExportRequest") -> GraphPlan:
        """`prefill_<T>` for each length, and `decode`. Raises ExportError."""
        return step_plan(FlowGraph, config, (block.attention for block in config.blocks), request)
