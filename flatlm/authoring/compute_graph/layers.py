"""The layer that a node is of: the number in its cache's name, and in the names of its weights.

Such as the 3 of model.layers.3.mlp.up_proj.weight. What has no weight belongs to the layer before it.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from flatlm.authoring.compute_graph.nodes import Attended, Node, Tensors, Weighted

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
"""A part of a name, between dots, that is a number."""


def layers_of(nodes: Sequence[Node]) -> list[int | None]:
    """The layer of each node; None outside of them, and everywhere where they cannot be told apart."""
    caches = sorted(int(node.cache) for node in nodes if isinstance(node, Attended))
    numbered: dict[str, set[int]] = {}
    for node in nodes:
        for tensor in _tensors(node):
            for prefix, number in _numbers(tensor):
                numbered.setdefault(prefix, set()).add(number)
    prefixes = {prefix for prefix, numbers in numbered.items() if sorted(numbers) == caches}
    layers: list[int | None] = []
    for node in nodes:
        own = {next((number for prefix, number in _numbers(tensor) if prefix in prefixes), None) for tensor in _tensors(node)}
        if isinstance(node, Attended):
            own = {int(node.cache)}
        before = layers[-1] if layers else None
        layers.append(before if not own else own.pop() if len(own) == 1 else None)
    runs = [layer for layer, _ in groupby(layers)]
    between = runs[runs[0] is None : len(runs) - (runs[-1] is None)]
    return layers if prefixes and between == caches else [None] * len(nodes)


def _tensors(node: Node) -> Tensors:
    return node.weight + node.bias if isinstance(node, Weighted) else ()


def _numbers(tensor: str) -> Iterator[tuple[str, int]]:
    """The numbers in a name, each with what comes before it."""
    for match in _NUMBER.finditer(tensor):
        yield tensor[: match.start()], int(match.group())
