"""A flow as segments: what comes before the layers, the layers, what comes after. Layers that are alike are one kind, compiled once.

Where the numbers in names do not tell layers apart (`layers.py`), the whole flow is one segment.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from flatlm.authoring.compute_graph.flow import Flow
from flatlm.authoring.compute_graph.layers import layers_of
from flatlm.authoring.compute_graph.nodes import Attended, Ids, Lookup, Node, Turned, Turning, Weighted
from flatlm.authoring.compute_graph.weight_names import NamedWeight, name_weights
from flatlm.layers.config import AttentionConfig


@dataclass(frozen=True)
class Segment:
    """Some nodes of a flow, their values numbered from 0: first those that it reads, of the shapes `inputs`, then its own.

    `outputs`: which of its values others read, by those values' numbers. In the paths of modules and of caches, `{}` is the layer at hand.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[int, ...]

    @property
    def attended(self) -> tuple[Attended, ...]:
        return tuple(node for node in self.nodes if isinstance(node, Attended))

    @property
    def ids(self) -> frozenset[Ids]:
        """What its tables are looked up by."""
        return frozenset(node.ids for node in self.nodes if isinstance(node, Lookup))

    @property
    def turnings(self) -> tuple[Turning, ...]:
        """The distinct rotations, in order of first occurrence."""
        return tuple(dict.fromkeys(node.turning for node in self.nodes if isinstance(node, Turned)))


@dataclass(frozen=True)
class Use:
    """A segment's place in the flow: its kind, its layer (None outside of them), and the flow's values that it reads and writes."""

    kind: int
    layer: int | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Chart:
    """A whole model: the kinds of segments, and their uses in order. `logits`: the value that is the result."""

    kinds: tuple[Segment, ...]
    uses: tuple[Use, ...]
    logits: int

    @property
    def attentions(self) -> tuple[AttentionConfig, ...]:
        """Of every cache, by its layer."""
        found = {}
        for use in self.uses:
            for node in self.kinds[use.kind].attended:
                found[int(in_layer(node.cache, use.layer))] = node.config
        return tuple(found[layer] for layer in range(len(found)))

    @property
    def turnings(self) -> tuple[Turning, ...]:
        """The distinct rotations, in order of first occurrence."""
        return tuple(dict.fromkeys(turning for kind in self.kinds for turning in kind.turnings))


def in_layer(name: str, layer: int | None) -> str:
    """The name with the layer's number in the place of `{}`."""
    return name if layer is None else name.replace("{}", str(layer))


def segment(flow: Flow, *, stamped: bool = True) -> tuple[Chart, tuple[NamedWeight, ...]]:
    """The flow in segments, and its named weights. Without `stamped` it is one segment, whatever repeats."""
    layers = layers_of(flow.nodes)
    nodes, weights = name_weights(flow, layers)
    if not stamped:
        layers = [None] * len(layers)
    runs = [(layer, [node for _, node in run]) for layer, run in groupby(zip(layers, nodes, strict=True), key=lambda pair: pair[0])]
    read_by = [{value for node in run for value in node.inputs} for _, run in runs]
    later: list[set[int]] = [set() for _ in runs]
    for index in range(len(runs) - 1, 0, -1):
        later[index - 1] = later[index] | read_by[index]
    kinds: dict[Segment, int] = {}
    uses = []
    for (layer, run), needed in zip(runs, later, strict=True):
        kind, inputs, outputs = _renumbered(run, layer, needed | {flow.logits}, flow.shapes)
        uses.append(Use(kinds.setdefault(kind, len(kinds)), layer, inputs, outputs))
    return Chart(tuple(kinds), tuple(uses), flow.logits), weights


def _renumbered(
    nodes: Sequence[Node], layer: int | None, needed: set[int], shapes: Sequence[tuple[int, ...]]
) -> tuple[Segment, tuple[int, ...], tuple[int, ...]]:
    """The nodes as a segment of no particular layer, and the flow's values that it reads and writes."""
    own = {node.output for node in nodes}
    inputs = tuple(dict.fromkeys(value for node in nodes for value in node.inputs if value not in own))
    number = {value: index for index, value in enumerate((*inputs, *(node.output for node in nodes)))}
    moved = [replace(node, inputs=tuple(number[value] for value in node.inputs), output=number[node.output]) for node in nodes]
    outputs = tuple(node.output for node in nodes if node.output in needed)
    kind = Segment(
        tuple(_of_no_layer(node, layer) for node in moved),
        tuple(shapes[value] for value in inputs),
        tuple(number[value] for value in outputs),
    )
    return kind, inputs, outputs


def _of_no_layer(node: Node, layer: int | None) -> Node:
    """With `{}` in the place of the layer's number."""
    if layer is None:
        return node
    if isinstance(node, Attended):
        return replace(node, cache="{}")
    if isinstance(node, Weighted):
        return replace(node, module=_template(node.module, layer))
    return node


def _template(path: str, layer: int) -> str:
    own = f"blocks.{layer}."
    return "blocks.{}." + path.removeprefix(own) if path.startswith(own) else path
