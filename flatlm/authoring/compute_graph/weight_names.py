"""What a flow's weights are called in the model, so that recipes' patterns find them.

`embedding` and `position_embedding` are the tables that ids look up, `lm_head` is the product that gives the logits, `final_norm` the norm
before it. A layer's are below `blocks.{i}`: `attention_norm`, `attention.qkv`, `attention.output`, `feed_forward_norm`,
`feed_forward.gate_up`, `feed_forward.down` where the flow has what these names mean, as every decoder's; any other is called as its tensor
is, in `attention` or in `feed_forward`. Outside of layers that is below `flow`; where layers cannot be told apart, below `flow.attention`
or `flow.feed_forward`, so that recipes for halves of layers reach them all the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

from torch import nn

from flatlm.authoring.compute_graph.flow import Flow
from flatlm.authoring.compute_graph.merge import Part, parts, readers_of
from flatlm.authoring.compute_graph.nodes import (
    Attended,
    Columns,
    Gated,
    Heads,
    Ids,
    Lookup,
    Node,
    Normed,
    Product,
    SomeHeads,
    Tensors,
    Turned,
    Weighted,
)

TABLES = {Ids.TOKENS: "embedding", Ids.POSITIONS: "position_embedding"}
HEAD = "lm_head"
OUTSIDE = "flow"
"""Below it are weights of no layer that have no name of their own."""
_TAKEN = frozenset(dir(nn.Module()))
"""What no module can be called in another, such as `half` and `type`."""


@dataclass(frozen=True)
class NamedWeight:
    """A parameter of the model, and the tensors whose rows, one below the other, make it up."""

    name: str
    tensors: Tensors


def name_weights(flow: Flow, layers: Sequence[int | None]) -> tuple[list[Node], tuple[NamedWeight, ...]]:
    """The nodes with their modules named, and the weights. Nodes of the same tensors share a module; a tied head has no weight."""
    names = _Names(flow, layered=any(layer is not None for layer in layers))
    return [names.named(node, layer) for node, layer in zip(flow.nodes, layers, strict=True)], tuple(names.weights)


class _Names:
    def __init__(self, flow: Flow, *, layered: bool) -> None:
        self._layered = layered
        self.weights: dict[NamedWeight, None] = {}
        self._logits = flow.logits
        self._half = parts(flow.nodes)
        self._writer = {node.output: node for node in flow.nodes}
        self._readers = readers_of(flow.nodes)
        self._modules: dict[object, str] = {}
        self._tables: dict[Tensors, str] = {}

    def named(self, node: Node, layer: int | None) -> Node:
        """The node with its module's path, its tensors forgotten but for whether it has a bias."""
        if not isinstance(node, Weighted):
            return node
        tied_to = self._tables.get(node.weight) if isinstance(node, Product) else None
        key = type(node), node.weight, node.bias
        if key not in self._modules:
            path = self._modules[key] = next(path for path in self._paths(node, layer) if path not in self._modules.values())
            if isinstance(node, Lookup):
                self._tables[node.weight] = path
            if tied_to is None:
                self.weights[NamedWeight(f"{path}.weight", node.weight)] = None
            if node.bias:
                self.weights[NamedWeight(f"{path}.bias", node.bias)] = None
        named = replace(node, module=self._modules[key], weight=(), bias=())
        return replace(named, has_bias=bool(node.bias), tied_to=tied_to) if isinstance(named, Product) else named

    def _paths(self, node: Weighted, layer: int | None) -> Iterator[str]:
        """What its module could be called, the best first, without end."""
        prefix = "" if layer is None else f"blocks.{layer}."
        role = self._role(node, layer)
        if role is not None:
            yield prefix + role
        prefix = prefix or f"{OUTSIDE}."
        half = "" if layer is None and self._layered else f"{self._half[node.output]}."
        suffix = {Lookup: "embedding", Normed: "norm"}.get(type(node), "")
        stems = [tensor.removesuffix(".weight") for tensor in node.weight]
        for parts_of_names in ([stem.rsplit(".")[-1] for stem in stems], [stem.replace(".", "_") for stem in stems]):
            own = "_".join(parts_of_names)
            own += "_linear" if own in _TAKEN else ""
            own = prefix + half + (own if own.endswith(suffix) else f"{own}_{suffix}")
            yield own
        yield from (f"{own[: len(own) - len(suffix)]}{number}{suffix and '_'}{suffix}" for number in count(2))

    def _role(self, node: Weighted, layer: int | None) -> str | None:
        if isinstance(node, Lookup):
            return TABLES[node.ids]
        readers = self._readers.get(node.output, [])
        if isinstance(node, Normed):
            halves = {self._half[reader.output] for reader in readers if isinstance(reader, Product)}
            if layer is None:
                return "final_norm" if any(reader.output == self._logits for reader in readers) else None
            return f"{halves.pop()}_norm" if len(halves) == 1 else None
        if node.output == self._logits:
            return HEAD
        source = self._writer[node.inputs[0]]
        if layer is None:
            return None
        if isinstance(source, Attended):
            return f"{Part.ATTENTION}.output"
        if isinstance(source, Gated):
            return f"{Part.FEED_FORWARD}.down"
        if any(isinstance(reader, Gated) for reader in readers):
            return f"{Part.FEED_FORWARD}.gate_up"
        attended = [other for other in self._writer.values() if isinstance(other, Attended)]
        if any(all(self._origin(value) == node.output for value in other.inputs) for other in attended):
            return f"{Part.ATTENTION}.qkv"
        return None

    def _origin(self, value: int) -> int:
        """The product's output that heads were made of."""
        while isinstance(self._writer[value], Columns | Heads | SomeHeads | Turned | Normed):
            (value,) = self._writer[value].inputs
        return value
