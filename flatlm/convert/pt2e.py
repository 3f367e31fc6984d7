"""The generic path with a recipe: PyTorch 2 Export quantization, then the same weight-free operators that the fast path ends in.

    torch.export ──► prepare_pt2e, convert_pt2e (quantize/pt2e.py) ──► name_weights ──► litert-torch ──► link
                                                                          └ weights, as integers ──► layout ─┘

`name_weights` takes what PT2E produced out of the graph: each linear and embedding becomes `flatlm::linear`, `flatlm::embedding` with its
weight's name, and the integers go to a source of weights that keeps them as they are. Nothing is rounded twice.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

import flatlm.layers.ops  # noqa: F401 - registers the named operators
from flatlm.convert.generic import Entry
from flatlm.convert.in_memory import InMemory, IntegersInMemory
from flatlm.convert.weights import WeightLayout, WeightSource
from flatlm.errors import RecipeError
from flatlm.quantize import pt2e
from flatlm.quantize.carried import IntegerRows
from flatlm.quantize.pt2e import RecipeQuantizer
from flatlm.quantize.recipes import Recipe


def quantize(entries: Sequence[Entry], recipe: Recipe) -> tuple[list[Entry], WeightLayout]:
    """The signatures as weight-free graphs by the recipe, and where their weights will lie. RecipeError before any weight is encoded."""
    graphs = [
        torch.export.export(module, args, dict(kwargs), strict=False).module(check_guards=False) for _, module, args, kwargs in entries
    ]
    quantizer = RecipeQuantizer(recipe, *(module for _, module, _, _ in entries))
    quantizer.survey(graphs)
    free: list[Entry] = []
    sources: dict[str, WeightSource] = {}
    for (name, _, args, kwargs), graph in zip(entries, graphs, strict=True):
        converted = convert_pt2e(prepare_pt2e(graph, quantizer), fold_quantize=False)
        rewrite = _Rewrite(converted, quantizer)
        free.append((name, rewrite.graph(), args, kwargs))
        sources |= rewrite.sources
    return free, WeightLayout(sources, quantizer, biases=quantizer.bias_keys())


class _Rewrite:
    """One converted graph: quantized values out, names in. `sources` are the weights and biases that it names."""

    def __init__(self, converted: GraphModule, quantizer: RecipeQuantizer) -> None:
        self.sources: dict[str, WeightSource] = {}
        self._converted = converted
        self._quantizer = quantizer
        for node in list(converted.graph.nodes):
            if node.target in (pt2e.LINEAR, pt2e.EMBEDDING):
                key = self._key(pt2e.weight_node(node))
                if key is not None:
                    self._linear(node, key) if node.target == pt2e.LINEAR else self._embedding(node, key)

    def graph(self) -> GraphModule:
        """The graph without what nothing reads any more; the weights are not in it."""
        self._converted.graph.eliminate_dead_code()
        free = GraphModule(self._converted, self._converted.graph)  # takes over only the attributes that the graph reads
        free.training = False
        return free

    def _key(self, node: Node) -> str | None:
        """The weight that a linear's or an embedding's node stands for, through what PT2E has put around it."""
        if node.target in (pt2e.DEQUANTIZE_WEIGHT, pt2e.WIDEN):
            values = node.args[0]
            assert isinstance(values, Node)
            return self._quantizer.attributes[str(values.target)]
        tensor = pt2e.attribute(self._converted, node)
        key = None if tensor is None else self._quantizer.key(tensor)
        return key if key in self._quantizer.weights else None

    def _source(self, key: str) -> Tensor:
        """Keep the weight's source; returns the weight, for its shape."""
        weight = self._quantizer.weights[key]
        if weight.scheme.storage == "float32":
            self.sources[key] = InMemory(weight.tensor.detach(), f"parameter {weight.name}")
        else:
            stored = self._quantizer.store(key)
            if stored.scales is None:
                self.sources[key] = InMemory(stored.values, f"parameter {weight.name}")
            else:
                self.sources[key] = IntegersInMemory(IntegerRows(stored.values, stored.scales), weight.scheme, f"parameter {weight.name}")
        return weight.tensor

    def _linear(self, node: Node, key: str) -> None:
        weight, graph = self._source(key), self._converted.graph
        x, bias = pt2e.argument(node, 0, "input"), pt2e.argument(node, 2, "bias")
        tensor = pt2e.attribute(self._converted, bias)
        bias_key = None if tensor is None else self._quantizer.key(tensor)
        if tensor is not None and bias_key is not None:
            self.sources[bias_key] = InMemory(tensor.detach(), f"parameter {bias_key}")
        replaced = [node]
        ranges = self._quantizer.weights[key].ranges
        if ranges is not None:
            x = self._around(x, ranges.input.affine())[0]
            replaced = list(next(iter(node.users)).users)
            for outside in replaced:
                self._around(outside, ranges.output.affine())
        with graph.inserting_after(node):
            new = graph.call_function(torch.ops.flatlm.linear.default, (x, key, bias_key or "", weight.shape[0]))
        if bias is not None and bias_key is None:
            with graph.inserting_after(new):
                new = graph.call_function(torch.ops.aten.add.Tensor, (new, bias))
        for old in replaced:
            old.replace_all_uses_with(new)

    def _around(self, node: Any, affine: Any) -> tuple[Node, Node]:
        """What is quantized, and where: a pair of quantize and dequantize, whose numbers are the recipe's."""
        assert isinstance(node, Node) and node.target == pt2e.DEQUANTIZE
        quantized = node.args[0]
        assert isinstance(quantized, Node) and quantized.target == pt2e.QUANTIZE
        assert quantized.args[1:3] == (affine.scale, affine.zero_point), (quantized.args, affine)
        inside = quantized.args[0]
        assert isinstance(inside, Node)
        return inside, quantized

    def _embedding(self, node: Node, key: str) -> None:
        weight, graph = self._source(key), self._converted.graph
        ids = pt2e.argument(node, 1, "indices")
        value = ids.meta["val"]
        shape = list(value.shape)
        if any(not isinstance(size, int) for size in shape):
            raise RecipeError(f"embedding {key!r} is read with ids of shape {shape}: shapes must be fixed")
        with graph.inserting_before(node):
            if value.dtype != torch.int32:
                ids = graph.call_function(torch.ops.aten.to.dtype, (ids, torch.int32))
            flat = ids if len(shape) == 1 else graph.call_function(torch.ops.aten.reshape.default, (ids, [-1]))
            rows = graph.call_function(torch.ops.flatlm.embedding.default, (flat, key, weight.shape[1]))
            if len(shape) != 1:
                rows = graph.call_function(torch.ops.aten.reshape.default, (rows, [*shape, weight.shape[1]]))
        node.replace_all_uses_with(rows)
