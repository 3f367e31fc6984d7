"""PyTorch 2 Export quantization by a recipe: the quantizer that torchao's prepare_pt2e and convert_pt2e ask.

    graph = torch.export.export(module, arguments).module(check_guards=False)
    graph = convert_pt2e(prepare_pt2e(graph, RecipeQuantizer(recipe, module)), fold_quantize=False)

What comes out runs in torch, in torchao's form: a weight is integers and scales behind `torchao.dequantize_affine` (float16: behind a
conversion), static activations go through `quantize_per_tensor` and back. The integers are those of encode.py, the one formula: torchao's
own multiplies by 1 / scale, which gives another integer where two are equally near. Activations that are quantized as they come are the
runtime's affair (for each row anew, in the operator), and have no nodes here.

A weight is a parameter that only linears and embeddings read (aten.linear, aten.embedding), in whichever of the graphs. One that anything
else reads too, as a convolution does, stays float32 where the rule that decides it is about a kind of layer (recipes.LAYER_KINDS, so also
`*`), and is a RecipeError where the rule names it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.granularity import PerAxis
from torchao.quantization.pt2e.observer import AffineQuantizedObserverBase
from torchao.quantization.pt2e.quantizer import FixedQParamsQuantizationSpec, QuantizationAnnotation, QuantizationSpec, Quantizer
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY
from torchao.quantization.quant_primitives import MappingType

from flatlm.errors import RecipeError
from flatlm.quantize.activations import HIGHEST, LOWEST, ActivationRange, LayerRanges
from flatlm.quantize.encode import encode, unpack
from flatlm.quantize.recipes import LAYER_KINDS, Recipe
from flatlm.quantize.scale_search import Range, round_rows
from flatlm.quantize.schemes import Scheme
from flatlm.quantize.weight_names import weight_names

LINEAR = torch.ops.aten.linear.default
EMBEDDING = torch.ops.aten.embedding.default
QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default
DEQUANTIZE = torch.ops.quantized_decomposed.dequantize_per_tensor.default
DEQUANTIZE_WEIGHT = torch.ops.torchao.dequantize_affine
WIDEN = torch.ops.quantized_decomposed.convert_element_type.no_fuse


@dataclass(frozen=True)
class StoredWeight:
    """What a weight became: `values` int8 [R, C] with `scales` float32 [R, groups], or float16 values and None."""

    values: Tensor
    scales: Tensor | None


@dataclass
class _Weight:
    """A parameter that only linears and embeddings read. `biases`: what its linears add, None where they add nothing."""

    name: str
    """By which recipes know it; its key may be another where two signatures' modules have a name in common."""
    tensor: Tensor
    scheme: Scheme
    ranges: LayerRanges | None = None
    biases: list[Tensor | None] = field(default_factory=list)


class RecipeQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates the graphs of one or several modules, among which weights are shared. `weights` are what it stores by a scheme, by key.

    A weight is known by its tensor, so that layers and signatures that share one store it once.
    """

    def __init__(self, recipe: Recipe, *modules: nn.Module) -> None:
        """RecipeError where a pattern that names weights decides none of the modules', or a method needs more than the weights."""
        if recipe.method.needs_text or recipe.method.rotate:
            raise RecipeError(
                f"recipe {recipe.name!r}: its method ({recipe.method}) looks at a whole checkpoint, and is for `flatlm export`"
            )
        self.recipe = recipe
        self.weights: dict[str, _Weight] = {}
        self.stored: dict[str, StoredWeight] = {}
        self.attributes: dict[str, str] = {}
        """From a converted graph's buffer of integers to its weight's key."""
        self._keys: dict[int, str] = {}
        self._names: dict[str, str] = {}
        self._surveyed = False
        for index, module in enumerate(modules):
            for name, tensor in weight_names(module).items():
                if id(tensor) not in self._keys:
                    key = f"{name}@{index}" if name in self._names else name
                    self._keys[id(tensor)], self._names[key] = key, name
        recipe.require_matches(self._names.values())

    def key(self, tensor: Tensor) -> str | None:
        """The name that a parameter or buffer of the modules is stored under; None for any other tensor."""
        return self._keys.get(id(tensor))

    def survey(self, graphs: Iterable[GraphModule]) -> None:
        """Decide on every weight of the exported graphs, before any work: RecipeError where the recipe cannot be followed."""
        readers: dict[str, list[tuple[Node, Node, GraphModule]]] = {}
        tensors: dict[str, Tensor] = {}
        for graph in graphs:
            for node in graph.graph.nodes:
                tensor = attribute(graph, node)
                key = None if tensor is None else self.key(tensor)
                if tensor is not None and key is not None:
                    tensors[key] = tensor
                    readers.setdefault(key, []).extend((node, reader, graph) for reader in node.users)
        for key, tensor in tensors.items():
            if tensor.ndim < 2 or not readers[key]:
                continue
            name = self._names[key]
            strange = [reader for node, reader, _ in readers[key] if not reads_as_weight(reader, node)]
            if not strange:
                self.weights[key] = self._decide(name, tensor, readers[key])
            elif self.recipe.scheme_for(name).name != "float32" and self.recipe.rule_for(name).pattern not in LAYER_KINDS:
                raise RecipeError(
                    f"recipe {self.recipe.name!r}: {name!r} is read by {strange[0].target}, and only the weights of linears and embeddings "
                    f"are stored otherwise than as float32: give pattern {self.recipe.rule_for(name).pattern!r} the scheme float32"
                )
        self._surveyed = True

    def _decide(self, name: str, tensor: Tensor, readers: list[tuple[Node, Node, GraphModule]]) -> _Weight:
        scheme = self.recipe.scheme_for(name, tensor.shape)
        scheme.check(name, tensor.shape)
        if tensor.dtype != torch.float32:
            raise RecipeError(f"{name!r} is {tensor.dtype}: call .float() on the module, so that the recipe alone says how it is stored")
        weight = _Weight(name, tensor, scheme)
        linears = [(reader, graph) for _, reader, graph in readers if reader.target == LINEAR]
        ranges = self.recipe.ranges_for(name, scheme)
        weight.ranges = ranges if linears else None
        for reader, graph in linears:
            bias = argument(reader, 2, "bias")
            value = None if bias is None else attribute(graph, bias)
            if weight.ranges is not None and bias is not None and (value is None or self.key(value) is None):
                raise RecipeError(f"scheme {scheme.name!r}: the bias of {name!r} is computed, and must be a parameter to become integers")
            weight.biases.append(value)
        if weight.ranges is not None and len({id(bias) for bias in weight.biases}) > 1:
            raise RecipeError(f"scheme {scheme.name!r}: linears of one weight, {name!r}, have different biases: give it dynamic_int8")
        return weight

    def scheme_for(self, key: str, shape: Sequence[int] | None = None) -> Scheme:
        """What was decided for a weight; for a bias what the recipe says."""
        return self.weights[key].scheme if key in self.weights else self.recipe.scheme_for(self._names[key], shape)

    def ranges_for(self, key: str, scheme: Scheme) -> LayerRanges | None:
        """The ranges of a weight of static activations, else None."""
        return self.weights[key].ranges if key in self.weights else None

    def require_matches(self, keys: Iterable[str]) -> None:
        """Nothing: all names of the modules were matched at first, and `keys` may be some of them."""

    def bias_keys(self) -> dict[str, str]:
        """The bias that goes with each weight of static activations, by key, where it has one."""
        pairs = {key: weight.biases[0] for key, weight in self.weights.items() if weight.ranges is not None and weight.biases}
        return {key: self._keys[id(bias)] for key, bias in pairs.items() if bias is not None}

    def annotate(self, model: GraphModule) -> GraphModule:
        """Ask for what the recipe says at every linear and embedding of the graph."""
        if not self._surveyed:
            self.survey([model])
        for node in model.graph.nodes:
            if node.target not in (LINEAR, EMBEDDING):
                continue
            weight = weight_node(node)
            tensor = attribute(model, weight)
            key = None if tensor is None else self.key(tensor)
            if key not in self.weights or self.weights[key].scheme.storage == "float32":
                continue
            known = self.weights[key]
            inputs = {weight: QuantizationSpec(torch.int8, WeightObserver.with_args(key=key))}
            output = None
            if node.target == LINEAR and known.ranges is not None:
                inputs[node.args[0]] = _fixed(known.ranges.input)
                output = _fixed(known.ranges.output)
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(inputs, output, _annotated=True)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing is left to check: `survey` did."""

    def prepare_obs_or_fq_callback(self, model: GraphModule, edge_or_node_to_obs_or_fq: Mapping[Any, Any]) -> None:
        """The hook of torchao between making the observers and putting them in: each learns where weights are kept."""
        for observer in edge_or_node_to_obs_or_fq.values():
            if isinstance(observer, WeightObserver):
                observer.quantizer = self

    def store(self, key: str) -> StoredWeight:
        """The weight by its scheme; encoded once, whichever graphs ask for it."""
        if key not in self.stored:
            weight = self.weights[key]
            self.stored[key] = self._stored(weight.tensor.detach(), weight.scheme)
        return self.stored[key]

    def _stored(self, values: Tensor, scheme: Scheme) -> StoredWeight:
        if self.recipe.method.searches(scheme):
            rows = round_rows(values, scheme, self.recipe.method.rounding)
            return StoredWeight(rows.integers, rows.scales)
        encoded = encode(values, scheme)
        if encoded.scales is None:
            return StoredWeight(torch.from_numpy(encoded.data), None)
        scales = torch.from_numpy(encoded.scales).to(torch.float32).reshape(len(values), -1)
        return StoredWeight(unpack(encoded, scheme), scales)


class WeightObserver(AffineQuantizedObserverBase):  # type: ignore[misc]
    """Stands at a weight between prepare_pt2e and convert_pt2e, and puts what is stored in its place. It observes nothing."""

    quantizer: RecipeQuantizer

    def __init__(self, *, key: str, **_: Any) -> None:
        super().__init__(MappingType.SYMMETRIC, torch.int8, PerAxis(0))
        self.key = key

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torchao's name
        return input

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scales [R, groups] and zero points of 0."""
        scales = self.quantizer.store(self.key).scales
        assert scales is not None
        return scales, torch.zeros_like(scales, dtype=torch.int32)

    def convert(self, model: GraphModule, observer_node: Node) -> None:
        """In the place of the observer: a buffer of stored values, and the node that makes float32 of them."""
        stored, scheme = self.quantizer.store(self.key), self.quantizer.weights[self.key].scheme
        name = f"_stored_{list(self.quantizer.weights).index(self.key)}"
        self.quantizer.attributes[name] = self.key
        with model.graph.inserting_before(observer_node):
            values = _buffer(model, name, stored.values)
            if stored.scales is None:
                wide = model.graph.call_function(WIDEN, (values, torch.float32))
            else:
                scales, zeros = self.calculate_qparams()
                block = (1, stored.values.shape[1] // scales.shape[1])
                scale, zero = _buffer(model, f"{name}_scales", scales), _buffer(model, f"{name}_zeros", zeros)
                arguments = (values, block, scale, zero, torch.int8, *Range.of(scheme))
                wide = model.graph.call_function(DEQUANTIZE_WEIGHT, arguments, {"output_dtype": torch.float32})
        wide.meta = {key: value for key, value in observer_node.meta.items() if key != Q_ANNOTATION_KEY}
        observer_node.replace_all_uses_with(wide)
        model.graph.erase_node(observer_node)


def attribute(graph: GraphModule, node: object) -> Tensor | None:
    """The tensor that a node of the graph stands for, where it is a parameter, a buffer or a constant."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value: Any = graph
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, Tensor) else None


def argument(node: Node, index: int, name: str) -> Any:
    """A call's argument, wherever it is given; None where it is not."""
    return node.args[index] if len(node.args) > index else node.kwargs.get(name)


def weight_node(node: Node) -> Node:
    """The weight of a linear or an embedding."""
    found = argument(node, 1, "weight") if node.target == LINEAR else argument(node, 0, "weight")
    assert isinstance(found, Node)
    return found


def reads_as_weight(reader: Node, node: Node) -> bool:
    """Whether `reader` is a linear or an embedding that reads `node` as its weight, and in no other place."""
    if reader.op != "call_function" or reader.target not in (LINEAR, EMBEDDING):
        return False
    return weight_node(reader) is node and sum(each is node for each in (*reader.args, *reader.kwargs.values())) == 1


def _fixed(values: ActivationRange) -> Any:
    affine = values.affine()
    return FixedQParamsQuantizationSpec(torch.int8, affine.scale, affine.zero_point, LOWEST, HIGHEST, torch.per_tensor_affine)


def _buffer(model: GraphModule, name: str, values: Tensor) -> Node:
    if not hasattr(model, name):
        model.register_buffer(name, values)
    return model.graph.get_attr(name)
