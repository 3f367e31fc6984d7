"""Encoders: models that read a text as a whole."""

from typing import TYPE_CHECKING, Any

from flatlm.convert.encoder_graph import EncoderGraph
from flatlm.errors import ExportError
from flatlm.layers.config import CacheDtype
from flatlm.layers.encoder import Encoder, build_on_meta
from flatlm.layers.encoder_config import EmbeddingHead, EncoderConfig, SequenceHead, TokenHead
from flatlm.utilities.checkpoints.store import TensorStore
from flatlm.utilities.configs.config_reader import ConfigReader
from flatlm.utilities.configs.encoder_tasks import CLASSIFICATION, TOKEN_CLASSIFICATION, label_names, problem_type
from flatlm.utilities.kinds.kind import GraphPlan
from flatlm.utilities.kinds.lengths import read_lengths, require_steps_alone
from flatlm.utilities.weights.encoder_slots import encoder_slots, ignored_patterns
from flatlm.utilities.weights.loader import LoadPlan, plan_slots
from flatlm.utilities.weights.tensor_names import TensorNames

if TYPE_CHECKING:
    from flatlm.utilities.exporter import ExportRequest

KIND = "encoder"
"""What a file's manifest says of itself."""
DEFAULT_LENGTHS = (16, 128, 512)


class Encoders:
    """The kind of every `EncoderConfig`."""

    def load_plan(self, config: EncoderConfig, checkpoint: TensorStore, names: TensorNames) -> LoadPlan:
        """Raises CheckpointError."""
        slots = list(encoder_slots(config, names, checkpoint.tensors))
        return plan_slots(slots, checkpoint, names, ignored=ignored_patterns(config, names), vocab_size=config.vocab_size)

    def build(self, config: EncoderConfig, length: int) -> Encoder:
        """The same for every length of text."""
        return build_on_meta(config)

    def graph(self, config: EncoderConfig, request: "ExportRequest") -> GraphPlan:
        """`encode_<T>` for each length, by default DEFAULT_LENGTHS, none above the model's positions. Raises ExportError."""
        if request.kv_cache_len is not None or request.kv_cache_dtype != CacheDtype.FLOAT32 or request.prefill_logits:
            raise ExportError("an encoder has no KV cache and no prefill: leave out --kv-cache-len, --kv-cache-dtype and --prefill-logits")
        require_steps_alone(request, "an encoder")
        if request.output.suffix == ".litertlm":
            raise ExportError(
                f"{request.output}: a bundle is for chats, which LiteRT-LM runs on decoders alone: export an encoder to .tflite"
            )
        lengths = read_lengths(request, DEFAULT_LENGTHS, config.max_positions)
        return GraphPlan(EncoderGraph(config, lengths), lengths, lengths[-1], facts=_facts(config, request))


def _facts(config: EncoderConfig, request: "ExportRequest") -> dict[str, Any]:
    """What a runner must know beside the signatures: the task, what pads a text, and what the outputs mean. Raises ConfigError."""
    reader = ConfigReader.from_directory(request.checkpoint)
    facts: dict[str, Any] = {"kind": KIND, "task": config.task, "layers": len(config.layers)}
    facts["pad_token_id"] = reader.whole("pad_token_id", 0)
    if facts["pad_token_id"] >= config.vocab_size:
        raise reader.wrong("pad_token_id", f"is outside the vocabulary of {config.vocab_size}")
    if config.token_types:
        facts["token_types"] = config.token_types
    if request.reading.task is not None:
        facts["task_asked"] = request.reading.task
    if isinstance(config.head, EmbeddingHead):
        facts |= {"pooling": str(config.head.pooling), "normalised": config.head.normalised, "dimensions": config.width}
    if isinstance(config.head, SequenceHead | TokenHead) and config.task in (CLASSIFICATION, TOKEN_CLASSIFICATION):
        facts |= {"labels": list(label_names(reader)), "problem_type": problem_type(reader)}
    return facts
