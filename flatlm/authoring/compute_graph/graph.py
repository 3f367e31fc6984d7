"""What a compiler is asked for where a model is a flow. Nothing here loads the compiler; `stamp` does."""

from dataclasses import dataclass
from typing import Any

from flatlm.authoring.compute_graph.config import FlowConfig
from flatlm.convert.graphs import ROOM_A_BLOCK
from flatlm.convert.signatures import SignatureSpec
from flatlm.layers.kv_cache import CacheGeometry


@dataclass(frozen=True)
class FlowGraph:
    """The signatures of a `FlowModel`, whose inputs and outputs are every decoder's."""

    config: FlowConfig
    geometry: CacheGeometry
    specs: tuple[SignatureSpec, ...]

    @property
    def signatures(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs)

    @property
    def room(self) -> int:
        return (1 + len(self.specs) * len(self.config.blocks)) * ROOM_A_BLOCK

    def stamp(self) -> Any:
        from flatlm.authoring.compute_graph.pieces import stamp_flow

        return stamp_flow(self.config, self.geometry, self.specs)
