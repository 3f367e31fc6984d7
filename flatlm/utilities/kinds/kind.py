"""What the exporter must know of a kind of model: where its weights are, what it is compiled from, and the model itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from flatlm.convert.graphs import Graph
from flatlm.layers.config import CacheDtype

if TYPE_CHECKING:
    from flatlm.utilities.checkpoints.store import TensorStore
    from flatlm.utilities.exporter import ExportRequest
    from flatlm.utilities.weights.loader import LoadPlan
    from flatlm.utilities.weights.tensor_names import TensorNames


@dataclass(frozen=True)
class GraphPlan:
    """What is compiled, and what follows from a request's lengths.

    `lengths`: tokens of the signatures that read several at once. `context`: the most tokens of a text, which is the KV cache's length
    where there is one. `cache_bytes`: what all caches take. `facts`: entries of the manifest that only this kind has; `kind` is among
    them, but for decoders.
    """

    graph: Graph
    lengths: tuple[int, ...]
    context: int
    cache_bytes: int = 0
    cache_dtype: CacheDtype = CacheDtype.FLOAT32
    facts: Mapping[str, Any] = field(default_factory=dict)


class ModelKind(Protocol):
    """A kind of model. Stateless; one for each type of configuration (`table.py`)."""

    def load_plan(self, config: Any, checkpoint: "TensorStore", names: "TensorNames") -> "LoadPlan":
        """Where every weight comes from. Raises CheckpointError with all that is wrong."""
        ...

    def build(self, config: Any, length: int) -> nn.Module:
        """The eager model for contexts of `length` tokens, on the meta device; `tie()` shares what is shared, once weights are loaded."""
        ...

    def graph(self, config: Any, request: "ExportRequest") -> GraphPlan:
        """What is compiled for a request. Raises ExportError for lengths that cannot be."""
        ...
