"""From an author's class and a checkpoint to a configuration: build() is run, and what it describes is checked and merged."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flatlm.authoring.author_code import author_code
from flatlm.authoring.compute_graph.calls import ComputeGraph, WeightName
from flatlm.authoring.compute_graph.config import FlowConfig
from flatlm.authoring.compute_graph.flow import MAX_POSITIONS, check_flow
from flatlm.authoring.compute_graph.merge import merge
from flatlm.authoring.compute_graph.segments import segment
from flatlm.errors import CustomModelError
from flatlm.utilities.weights.slots import Part, Slot

LENGTH_KEYS = ("max_position_embeddings", "seq_length", "max_sequence_length", "n_positions", "model_max_length", "max_seq_len")
"""What others call it, for the hint where it is missing."""
IGNORED = ("*.rotary_emb.inv_freq",)
"""Tables that early checkpoints carried along."""


def build_flow(
    graph_class: type[ComputeGraph],
    config: Mapping[str, Any],
    tensors: Mapping[str, tuple[int, ...]],
    source: Path,
    *,
    stamped: bool = True,
) -> FlowConfig:
    """The model that the class describes for a config.json and a checkpoint with tensors of these shapes.

    `source`: the file of the class. `stamped`: False leaves layers that repeat as one piece. Raises CustomModelError.
    """
    with author_code(source, f"{graph_class.__name__}.build()"):
        graph = graph_class()
        graph.config = dict(config)
        graph.build()
    positions = graph.config.get(MAX_POSITIONS) if isinstance(graph.config, Mapping) else None
    if not isinstance(positions, int) or isinstance(positions, bool) or positions < 2:
        raise CustomModelError(f"{source.name}: {_no_positions(graph.config)}")
    flow = merge(check_flow(graph.graph, tensors, graph.config, source.name))
    chart, weights = segment(flow, stamped=stamped)
    slots = tuple(Slot(weight.name, tuple(Part(tensor, tensors[tensor]) for tensor in weight.tensors)) for weight in weights)
    used = {tensor for weight in weights for tensor in weight.tensors}
    named = {argument.name for call in graph.graph for argument in call.arguments if isinstance(argument, WeightName)}
    dropped = tuple(sorted(named & tensors.keys() - used))  # of calls that nothing depends on
    ignored = (*IGNORED, *_patterns(graph, source), *dropped)
    return FlowConfig(chart, slots, ignored, positions, flow.shapes[flow.logits][-1])


def _patterns(graph: ComputeGraph, source: Path) -> Sequence[str]:
    """What the class ignores."""
    given: Any = graph.ignored_tensors
    if not isinstance(given, tuple | list) or not all(isinstance(pattern, str) for pattern in given):
        raise CustomModelError(
            f"{source.name}: {type(graph).__name__}.ignored_tensors = {given!r} must be a tuple of patterns: ignored_tensors = "
            f"({given if isinstance(given, str) else '*.inv_freq'!r},)"
        )
    return given


def _no_positions(config: Any) -> str:
    if not isinstance(config, Mapping):
        return f"build() made self.config a {type(config).__name__}; it is a dict"
    if config.get(MAX_POSITIONS) is not None:
        return f'self.config["{MAX_POSITIONS}"] = {config[MAX_POSITIONS]!r} must be a whole number of tokens, 2 or more'
    key = next((key for key in LENGTH_KEYS if isinstance(config.get(key), int)), None)
    value = f'self.config["{key}"]' if key else "the longest context, in tokens"
    return f'build() must set self.config["{MAX_POSITIONS}"], which config.json has not: self.config["{MAX_POSITIONS}"] = {value}'
