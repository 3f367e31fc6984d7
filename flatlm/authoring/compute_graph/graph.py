"""What a compiler is asked for where a model is a flow. Nothing here loads the compiler; `stamp` does."""

from dataclasses import dataclass
from typing import Any

from flatlm.authoring.compute_graph.config import FlowConfig
from flatlm.convert.graphs import StepGraph


@dataclass(frozen=True)
class FlowGraph(StepGraph):
    """The signatures of a `FlowModel`, whose inputs and outputs are every decoder's."""

    config: FlowConfig

    def stamp(self) -> Any:
        from flatlm.authoring.compute_graph.pieces import stamp_flow

        return stamp_flow(self.config, self.geometry, self.specs)
