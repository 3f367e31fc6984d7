"""How a flow is taken apart for the compiler: each kind of segment once for each length, stamped wherever it is used."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from flatlm.authoring.compute_graph.config import FlowConfig
from flatlm.authoring.compute_graph.model import FlowModel, StepInputs, build_on_meta
from flatlm.authoring.compute_graph.nodes import Ids
from flatlm.authoring.compute_graph.segments import Chart, Segment, Use, in_layer
from flatlm.convert.compile import Piece, compile_pieces
from flatlm.convert.graphs import by_cache
from flatlm.convert.signatures import SignatureSpec
from flatlm.convert.stamp import SignaturePlan, Step, stamp
from flatlm.layers.kv_cache import Cache, CacheGeometry, CacheSlots, KVCache, QuantizedCache, cache_names, empty_cache, place

LOGITS = "logits"


def stamp_flow(config: FlowConfig, geometry: CacheGeometry, specs: Sequence[SignatureSpec]) -> Any:
    """A model object with one signature for each spec, in which weights are still named calls."""
    pieces, plans = list[Piece](), list[SignaturePlan]()
    for caches, own in by_cache(geometry, specs):
        pieces += flow_pieces(build_on_meta(config, caches), own)
        plans += flow_plans(config, caches, own)
    return stamp(compile_pieces(pieces), plans)


def flow_pieces(model: FlowModel, specs: Sequence[SignatureSpec]) -> Iterator[Piece]:
    """For each signature, what is computed once a step, and every kind of segment that it needs."""
    for spec in specs:
        yield _step_piece(model, spec)
        for kind in dict.fromkeys(use.kind for use in _needed(model.config.chart, spec)):
            yield _segment_piece(model, spec, kind)


def flow_plans(config: FlowConfig, geometry: CacheGeometry, specs: Sequence[SignatureSpec]) -> list[SignaturePlan]:
    """The stamping plan of each signature."""
    chart = config.chart
    layers = [empty_cache(attention, geometry, device="meta") for attention in chart.attentions]
    caches = [name for layer, cache in enumerate(layers) for name in cache_names(cache, layer)]
    plans = []
    for spec in specs:
        steps = [Step(f"{spec.name}/step")]
        for use in _needed(chart, spec):
            steps.append(Step(f"{spec.name}/segment_{use.kind}", use.layer, _bind(chart, use, layers)))
        outputs = [*caches, *([LOGITS] if spec.logits else [])]
        plans.append(SignaturePlan(spec.name, ["tokens", "input_pos", *caches], outputs, steps))
    return plans


def _needed(chart: Chart, spec: SignatureSpec) -> list[Use]:
    """The uses of segments that a signature's caches, and its logits if it has them, depend on."""
    wanted = {chart.logits} if spec.logits else set()
    needed = []
    for use in reversed(chart.uses):
        if chart.kinds[use.kind].attended or not wanted.isdisjoint(use.outputs):
            wanted.update(use.inputs)
            needed.append(use)
    return needed[::-1]


def _bind(chart: Chart, use: Use, layers: Sequence[Cache]) -> dict[str, str]:
    """What the segment's piece calls its values and caches, and what the signature calls them."""
    kind = chart.kinds[use.kind]
    inside = (*range(len(kind.inputs)), *kind.outputs)
    bind = {
        _local(own): LOGITS if value == chart.logits else f"value_{value}"
        for own, value in zip(inside, (*use.inputs, *use.outputs), strict=True)
    }
    for index, node in enumerate(kind.attended):
        layer = int(in_layer(node.cache, use.layer))
        bind |= dict(zip(cache_names(layers[layer], f"of_{index}"), cache_names(layers[layer], layer), strict=True))
    return bind


def _local(value: int) -> str:
    """What a piece calls a value of its segment."""
    return f"own_{value}"


def _step_piece(model: FlowModel, spec: SignatureSpec) -> Piece:
    def call(input_pos: Tensor) -> dict[str, Tensor]:
        step = model.step_inputs(torch.zeros(1, spec.tokens, dtype=torch.int32), input_pos)
        assert isinstance(step.place, CacheSlots)
        out = {"mask": step.mask, "slots_k": step.place.k, "slots_v": step.place.v}
        for index, (cos, sin) in enumerate(step.turns.values()):
            out |= {f"cos_{index}": cos, f"sin_{index}": sin}
        return out

    return Piece(f"{spec.name}/step", call, {"input_pos": torch.arange(spec.tokens, dtype=torch.int32)})


def _segment_piece(model: FlowModel, spec: SignatureSpec, kind: int) -> Piece:
    chart, tokens, length = model.config.chart, spec.tokens, model.geometry.length
    segment = chart.kinds[kind]
    layer = next(use.layer for use in chart.uses if use.kind == kind)  # the modules of the first; its name is put in for each
    positions = torch.arange(tokens, dtype=torch.int32)
    inputs = {_local(index): torch.zeros(1, tokens, *shape) for index, shape in enumerate(segment.inputs)}
    inputs |= {ids.value: value for ids, value in ((Ids.TOKENS, positions[None].clone()), (Ids.POSITIONS, positions)) if ids in segment.ids}
    for index, turning in enumerate(chart.turnings):
        if turning in segment.turnings:
            inputs |= {f"{name}_{index}": torch.zeros(tokens, 1, turning.rope.head_dim) for name in ("cos", "sin")}
    if segment.attended:
        slots = place(positions, length, length)
        assert isinstance(slots, CacheSlots)
        inputs |= {"mask": torch.zeros(tokens, length), "slots_k": slots.k, "slots_v": slots.v}
    for index, node in enumerate(segment.attended):
        cache = empty_cache(node.config, model.geometry)
        inputs |= dict(zip(cache_names(cache, f"of_{index}"), cache, strict=True))

    def call(**given: Tensor) -> dict[str, Tensor]:
        outputs, written = model.run(segment, layer, _values(segment, given), _step(chart, segment, given), _caches(segment, given))
        named = {_local(value): tensor for value, tensor in zip(segment.outputs, outputs, strict=True)}
        for index, node in enumerate(segment.attended):
            cache = written[node.cache]
            named |= dict(zip(cache_names(cache, f"of_{index}"), cache, strict=True))
        return named

    return Piece(f"{spec.name}/segment_{kind}", call, inputs)


def _values(segment: Segment, given: dict[str, Tensor]) -> list[Tensor]:
    return [given[_local(index)] for index in range(len(segment.inputs))]


def _step(chart: Chart, segment: Segment, given: dict[str, Tensor]) -> StepInputs:
    """What a segment is told about the step, as far as it asks."""
    ids = {ids: given[ids.value] for ids in segment.ids}
    turns = {
        turning: (given[f"cos_{index}"], given[f"sin_{index}"]) for index, turning in enumerate(chart.turnings) if f"cos_{index}" in given
    }
    nothing = torch.zeros(0)
    return StepInputs(ids, given.get("mask", nothing), CacheSlots(given.get("slots_k", nothing), given.get("slots_v", nothing)), turns)


def _caches(segment: Segment, given: dict[str, Tensor]) -> dict[str, Cache]:
    caches: dict[str, Cache] = {}
    for index, node in enumerate(segment.attended):
        kind = QuantizedCache if f"kv_cache_k_of_{index}_scale" in given else KVCache
        names = cache_names(kind(*kind._fields), f"of_{index}")
        caches[node.cache] = kind(*(given[name] for name in names))
    return caches
