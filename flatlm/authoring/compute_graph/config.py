"""The configuration of a model that was described as a flow: frozen, like that of every other."""

from dataclasses import dataclass

from flatlm.authoring.compute_graph.nodes import Ids, Lookup, Product
from flatlm.authoring.compute_graph.segments import Chart, Segment
from flatlm.layers.config import AttentionConfig
from flatlm.utilities.weights.slots import Slot


@dataclass(frozen=True)
class CachedLayer:
    """A layer, as far as its cache goes."""

    attention: AttentionConfig


@dataclass(frozen=True)
class FlowConfig:
    """A language model over a KV cache, as a chart of segments. `slots`: its parameters and the tensors that they are made of.

    `ignored`: patterns of tensors that no number depends on. `max_positions`: the longest context, in tokens.
    """

    chart: Chart
    slots: tuple[Slot, ...]
    ignored: tuple[str, ...]
    max_positions: int
    vocab_size: int

    @property
    def blocks(self) -> tuple[CachedLayer, ...]:
        """Its layers, of which each has a cache."""
        return tuple(map(CachedLayer, self.chart.attentions))

    @property
    def block_kinds(self) -> tuple[Segment, ...]:
        """The distinct segments with caches, in order of first occurrence."""
        return tuple(kind for kind in self.chart.kinds if kind.attended)

    @property
    def embedding_dim(self) -> int:
        """The width of what a token is looked up as; 0 where no table is."""
        nodes = (node for kind in self.chart.kinds for node in kind.nodes)
        return next((node.width for node in nodes if isinstance(node, Lookup) and node.ids is Ids.TOKENS), 0)

    @property
    def tied_head(self) -> bool:
        """Whether a product shares a table."""
        return any(isinstance(node, Product) and node.tied_to is not None for kind in self.chart.kinds for node in kind.nodes)
