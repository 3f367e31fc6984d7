"""Decoders: language models over a KV cache."""

from typing import TYPE_CHECKING

from flatlm.convert.graphs import DecoderGraph
from flatlm.errors import ExportError
from flatlm.layers.config import ModelConfig
from flatlm.layers.kv_cache import CacheGeometry
from flatlm.layers.model import Decoder, build_on_meta
from flatlm.utilities.checkpoints.store import TensorStore
from flatlm.utilities.kinds.kind import GraphPlan
from flatlm.utilities.kinds.lengths import require_steps_alone, step_plan
from flatlm.utilities.weights.loader import LoadPlan, plan_slots
from flatlm.utilities.weights.slots import model_slots
from flatlm.utilities.weights.tensor_names import TensorNames

if TYPE_CHECKING:
    from flatlm.utilities.exporter import ExportRequest


class Decoders:
    """The kind of every `ModelConfig`."""

    def load_plan(self, config: ModelConfig, checkpoint: TensorStore, names: TensorNames) -> LoadPlan:
        """Raises CheckpointError."""
        ignored = [f"{names.lm_head}.weight"] if config.tied_head else []
        return plan_slots(list(model_slots(config, names)), checkpoint, names, ignored=ignored, vocab_size=config.vocab_size)

    def build(self, config: ModelConfig, length: int) -> Decoder:
        """With whole caches of `length` slots."""
        return build_on_meta(config, CacheGeometry(min(length, config.max_positions)))

    def graph(self, config: ModelConfig, request: "ExportRequest") -> GraphPlan:
        """`prefill_<T>` for each length, and `decode`. Raises ExportError."""
        if config.fills_blanks and request.output.suffix == ".litertlm":
            raise ExportError(
                f"{request.output}: LiteRT-LM runs models that write on, and this one fills blanks, from inputs that it lacks: export "
                "to a .tflite file"
            )
        if config.fills_blanks:
            require_steps_alone(request, "a model that fills blanks")
        facts = {"kind": "infilling"} if config.fills_blanks else {}
        return step_plan(DecoderGraph, config, (block.attention for block in config.blocks), request, facts)
