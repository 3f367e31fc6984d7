"""Fewer, larger products: those that read one value become one with its rows, and a gate with its branch one gated feed-forward.

Queries and keys turn in one go. What neither the result nor a cache depends on is dropped. fastllm's optimiser (graph.cpp) merges
products too, where they are neighbours.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import pairwise

from flatlm.authoring.compute_graph.flow import Flow
from flatlm.authoring.compute_graph.layers import layers_of
from flatlm.authoring.compute_graph.nodes import (
    Activated,
    Attended,
    Columns,
    Gated,
    Heads,
    Lookup,
    Multiplied,
    Node,
    Product,
    SomeHeads,
    Sum,
    Turned,
)


class Part(StrEnum):
    """The half of a block that a node belongs to. Recipes' patterns know it by this name."""

    ATTENTION = "attention"
    FEED_FORWARD = "feed_forward"


def merge(flow: Flow) -> Flow:
    """The same flow with products merged, and without what nothing depends on."""
    nodes = _alive(flow.nodes, flow.logits)
    layers = {node.output: layer for node, layer in zip(nodes, layers_of(nodes), strict=True)}
    shapes = list(flow.shapes)
    nodes = _fuse_gates(nodes, shapes, flow.logits, layers)
    nodes = _merge_products(nodes, shapes, flow.logits, layers)
    nodes = _turn_together(nodes, shapes)
    return Flow(nodes, shapes, flow.logits)


def parts(nodes: Sequence[Node]) -> dict[int, Part]:
    """The half that each node is of, by its output: what leads from a sum to attention's inputs, and from attention to the next sum, is
    attention's; the rest is the feed-forward's.
    """
    by_output = {node.output: node for node in nodes}
    readers = readers_of(nodes)
    found: set[int] = set()
    ahead = [value for node in nodes if isinstance(node, Attended) for value in node.inputs]
    while ahead:
        value = ahead.pop()
        if value not in found and not isinstance(by_output[value], Sum | Lookup | Attended):
            found.add(value)
            ahead += by_output[value].inputs
    behind: list[Node] = [node for node in nodes if isinstance(node, Attended)]
    while behind:
        node = behind.pop()
        found.add(node.output)
        behind += [reader for reader in readers.get(node.output, ()) if not isinstance(reader, Sum) and reader.output not in found]
    return {node.output: Part.ATTENTION if node.output in found else Part.FEED_FORWARD for node in nodes}


def _alive(nodes: Sequence[Node], logits: int) -> list[Node]:
    """The nodes that the result or a cache depends on."""
    needed, kept = {logits}, []
    for node in reversed(nodes):
        if node.output in needed or isinstance(node, Attended):
            needed.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def _fuse_gates(nodes: list[Node], shapes: list[tuple[int, ...]], logits: int, layers: Mapping[int, int | None]) -> list[Node]:
    """Every Silu of one product, times another product of the same value, as one product [gate | up] and its gated half."""
    by_output, readers = {node.output: node for node in nodes}, readers_of(nodes)

    def only_read(value: int) -> bool:
        return len(readers.get(value, ())) == 1 and value != logits

    replaced: dict[int, list[Node]] = {}
    for node in nodes:
        if not isinstance(node, Multiplied):
            continue
        for activated, up in (node.inputs, node.inputs[::-1]):
            silu, up_product = by_output[activated], by_output[up]
            gate_product = by_output[silu.inputs[0]] if isinstance(silu, Activated) else None
            if not isinstance(gate_product, Product) or not isinstance(up_product, Product) or gate_product is up_product:
                continue
            ways = (activated, up, gate_product.output)
            alike = _mergeable(gate_product, layers) == _mergeable(up_product, layers)
            if alike and gate_product.out_features == up_product.out_features:
                if not all(map(only_read, ways)):
                    continue
                merged = _merged([gate_product, up_product], shapes)
                replaced[gate_product.output] = replaced[up_product.output] = []
                first = min((gate_product, up_product), key=nodes.index)
                replaced[first.output] = [merged]
                replaced[activated] = []
                replaced[node.output] = [Gated((merged.output,), node.output, gate_product.out_features)]
                break
    return [new for node in nodes for new in replaced.get(node.output, [node])]


def _merge_products(nodes: list[Node], shapes: list[tuple[int, ...]], logits: int, layers: Mapping[int, int | None]) -> list[Node]:
    """Products of one value, of one half of one layer, all with a bias or all without, as one product and its columns."""
    half = parts(nodes)
    gates = {node.inputs[0] for node in nodes if isinstance(node, Gated)}
    groups: dict[object, list[Product]] = {}
    for node in nodes:
        if isinstance(node, Product) and node.output != logits and node.output not in gates:
            groups.setdefault((_mergeable(node, layers), half[node.output]), []).append(node)
    replaced: dict[int, list[Node]] = {}
    for group in groups.values():
        if len(group) < 2:
            continue
        merged = _merged(group, shapes)
        start = 0
        replaced[group[0].output] = [merged]
        for product in group:
            stop = start + product.out_features
            replaced.setdefault(product.output, []).append(Columns((merged.output,), product.output, start, stop))
            start = stop
    return [new for node in nodes for new in replaced.get(node.output, [node])]


def _turn_together(nodes: list[Node], shapes: list[tuple[int, ...]]) -> list[Node]:
    """Heads that turn alike, and lie side by side in one product, as queries and keys do: turned in one go."""
    by_output, readers = {node.output: node for node in nodes}, readers_of(nodes)
    ways: list[tuple[Turned, Heads, Columns]] = []
    for node in nodes:
        before = by_output[node.inputs[0]] if isinstance(node, Turned) else node
        match node, before, by_output[before.inputs[0]] if before.inputs else before:
            case Turned() as turned, Heads() as heads, Columns() as columns if (
                len(readers[heads.output]) == len(readers[columns.output]) == 1
            ):
                ways.append((turned, heads, columns))
    replaced: dict[int, list[Node]] = {}
    for (turned, heads, columns), (other, more, beside) in pairwise(ways):
        alike = columns.inputs == beside.inputs and turned.turning == other.turning and heads.width == more.width
        if not alike or columns.stop != beside.start or turned.output in replaced:
            continue
        count, width = heads.count + more.count, heads.width
        first = len(shapes)
        shapes += [(count * width,), (count, width), (count, width)]
        replaced |= {node.output: [] for node in (heads, columns, more, beside)}
        replaced[turned.output] = [
            Columns(columns.inputs, first, columns.start, beside.stop),
            Heads((first,), first + 1, count, width),
            Turned((first + 1,), first + 2, turned.turning),
            SomeHeads((first + 2,), turned.output, 0, heads.count),
        ]
        replaced[other.output] = [SomeHeads((first + 2,), other.output, heads.count, count)]
    return [new for node in nodes for new in replaced.get(node.output, [node])]


def _mergeable(product: Product, layers: Mapping[int, int | None]) -> object:
    """What is the same of products that can be one. Those of different layers stay apart: merged they would be of none."""
    return product.inputs, bool(product.bias), layers.get(product.output)


def _merged(products: Sequence[Product], shapes: list[tuple[int, ...]]) -> Product:
    """One product of the rows of all, with an output of its own."""
    features = sum(product.out_features for product in products)
    shapes.append((*shapes[products[0].output][:-1], features))
    weight = tuple(name for product in products for name in product.weight)
    bias = tuple(name for product in products for name in product.bias)
    return replace(products[0], output=len(shapes) - 1, weight=weight, bias=bias, out_features=features)


def readers_of(nodes: Iterable[Node]) -> dict[int, list[Node]]:
    """The nodes that read each value."""
    readers: dict[int, list[Node]] = {}
    for node in nodes:
        for value in dict.fromkeys(node.inputs):
            readers.setdefault(value, []).append(node)
    return readers
