"""A flow as a torch module: it runs the nodes, made of the layers that every family is made of."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # the field's own name for it
from torch import Tensor, nn

from flatlm.authoring.compute_graph.config import FlowConfig
from flatlm.authoring.compute_graph.nodes import (
    Activated,
    Attended,
    Columns,
    Gated,
    Heads,
    Ids,
    Lookup,
    Multiplied,
    Node,
    Normed,
    Product,
    SomeHeads,
    Sum,
    Turned,
    Turning,
    Weighted,
)
from flatlm.authoring.compute_graph.segments import Segment, in_layer
from flatlm.layers import ops
from flatlm.layers.attention import attention
from flatlm.layers.config import MaskConfig, NormConfig
from flatlm.layers.kv_cache import Cache, CacheGeometry, Placement, empty_caches, place, positions_held
from flatlm.layers.linear import Embedding, Linear
from flatlm.layers.mask import attention_mask
from flatlm.layers.norm import Norm
from flatlm.layers.rope import rope_tables, rotate


class StepInputs(NamedTuple):
    """What all segments are told about a step: its ids [1, T] and [T] int32, the mask [T, S], where its tokens go in the caches, and for
    each rotation cosines and signed sines [T, 1, H].
    """

    ids: Mapping[Ids, Tensor]
    mask: Tensor
    place: Placement
    turns: Mapping[Turning, tuple[Tensor, Tensor]]


class FlowModel(nn.Module):
    """A language model over static shapes, as `layers.model.Decoder` is one."""

    def __init__(self, config: FlowConfig, geometry: CacheGeometry) -> None:
        """Parameters are left unset."""
        super().__init__()
        self.config = config
        self.geometry = geometry
        chart = config.chart
        for use in chart.uses:
            for node in chart.kinds[use.kind].nodes:
                if isinstance(node, Weighted):
                    self._place_module(in_layer(node.module, use.layer), node)
        self.tie()
        self._tables = {turning: _tables(turning, geometry.positions) for turning in chart.turnings}

    def _place_module(self, path: str, node: Weighted) -> None:
        """Its layer, at its path, unless another node put it there. It is exported under the node's path, which may be a template."""
        module: nn.Module = self
        *parents, own = path.split(".")
        for name in parents:
            if name not in module._modules:
                module.add_module(name, nn.Module())
            module = module.get_submodule(name)
        if own not in module._modules:
            layer = _layer(node)
            layer.path = node.module
            module.add_module(own, layer)

    def tie(self) -> None:
        """Let tied products read their tables again, after weights were put in."""
        for module in self.modules():
            if isinstance(module, Linear) and module.tied_to is not None:
                module.weight = self.get_submodule(module.tied_to).weight  # type: ignore[assignment]

    def step_inputs(self, tokens: Tensor, input_pos: Tensor) -> StepInputs:
        """For tokens [B, T] int32 at consecutive positions input_pos [T] int32; no weight is read for it."""
        length = self.geometry.length
        turns = {turning: (_at(cos, input_pos), _at(sin, input_pos)) for turning, (cos, sin) in self._tables.items()}
        mask = attention_mask(MaskConfig(), input_pos, positions_held(input_pos, length, length))
        return StepInputs({Ids.TOKENS: tokens, Ids.POSITIONS: input_pos}, mask, place(input_pos, length, length), turns)

    def run(
        self, segment: Segment, layer: int | None, inputs: Sequence[Tensor], step: StepInputs, caches: Mapping[str, Cache]
    ) -> tuple[list[Tensor], dict[str, Cache]]:
        """The outputs of a segment in a layer's place, and the caches, by the names that its nodes give them, that it wrote."""
        values = dict(enumerate(inputs))
        written: dict[str, Cache] = {}
        for node in segment.nodes:
            if isinstance(node, Attended):
                q, k, v = (values[value] for value in node.inputs)
                cache = caches[node.cache].update(k, v, step.place)
                values[node.output], written[node.cache] = attention(q, cache, step.mask, node.config), cache
            else:
                values[node.output] = self._value(node, [values[value] for value in node.inputs], layer, step)
        return [values[value] for value in segment.outputs], written

    def _value(self, node: Node, inputs: list[Tensor], layer: int | None, step: StepInputs) -> Tensor:
        match node:
            case Lookup():
                ids = step.ids[node.ids]
                rows: Tensor = self._module(node, layer)(ids)
                return rows if node.ids is Ids.TOKENS else rows[None]
            case Product() | Normed():
                return self._module(node, layer)(inputs[0])  # type: ignore[no-any-return]
            case Columns(start=start, stop=stop):
                return inputs[0][..., start:stop]
            case SomeHeads(start=start, stop=stop):
                return inputs[0][..., start:stop, :]
            case Heads(count=count, width=width):
                return inputs[0].reshape(*inputs[0].shape[:-1], count, width)
            case Turned(turning=turning):
                return rotate(inputs[0], *step.turns[turning])
            case Sum(alpha=alpha):
                return inputs[0] + (inputs[1] if alpha == 1.0 else inputs[1] * alpha)
            case Multiplied():
                return inputs[0] * inputs[1]
            case Activated():
                return F.silu(inputs[0])
            case Gated(width=width):
                return F.silu(inputs[0][..., :width]) * inputs[0][..., width:]
        raise AssertionError(node)

    def _module(self, node: Weighted, layer: int | None) -> nn.Module:
        return self.get_submodule(in_layer(node.module, layer))

    def forward(self, tokens: Tensor, input_pos: Tensor, caches: Sequence[Cache] | None = None) -> tuple[Tensor, list[Cache]]:
        """Logits [B, T, V] and the updated caches for tokens [B, T] int32 at consecutive positions input_pos [T] int32.

        `caches`: None is empty ones for one text (B = 1), as at its beginning.
        """
        chart = self.config.chart
        given = list(empty_caches(self.config, self.geometry) if caches is None else caches)  # type: ignore[arg-type]
        step = self.step_inputs(tokens, input_pos)
        values: dict[int, Tensor] = {}
        for use in chart.uses:
            segment = chart.kinds[use.kind]
            at = {node.cache: int(in_layer(node.cache, use.layer)) for node in segment.attended}
            inputs = [values[value] for value in use.inputs]
            outputs, written = self.run(segment, use.layer, inputs, step, {name: given[index] for name, index in at.items()})
            values |= dict(zip(use.outputs, outputs, strict=True))
            for name, cache in written.items():
                given[at[name]] = cache
        return values[chart.logits], given


def build_on_meta(config: FlowConfig, geometry: CacheGeometry) -> FlowModel:
    """The model without any weight's memory; only the tables of rotations are real."""
    with torch.device("meta"):
        return FlowModel(config, geometry).eval()


def _layer(node: Weighted) -> ops.Named:
    match node:
        case Lookup(rows=rows, width=width):
            return Embedding(rows, width)
        case Product():
            linear = Linear(node.in_features, node.out_features, bias=node.has_bias)
            linear.tied_to = node.tied_to
            return linear
        case Normed(width=width, eps=eps):
            return Norm(NormConfig(eps=eps), width)
    raise AssertionError(node)


def _tables(turning: Turning, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines [positions, H], the pairs from `pairs` on still."""
    cos, sin = rope_tables(turning.rope, positions)
    still = torch.arange(turning.rope.head_dim, device="cpu") % (turning.rope.head_dim // 2) >= turning.pairs
    return torch.where(still, 1.0, cos), torch.where(still, 0.0, sin)


def _at(table: Tensor, input_pos: Tensor) -> Tensor:
    return ops.take(table, input_pos, 0)[:, None, :]
