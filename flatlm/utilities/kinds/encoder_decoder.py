"""Encoders with a decoder: a text is read once, another is written that looks at it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flatlm.convert.encoder_decoder_graph import EncoderDecoderGraph
from flatlm.errors import ExportError
from flatlm.layers.encoder_decoder import EncoderDecoder, TwoLengths, build_on_meta
from flatlm.layers.encoder_decoder_config import EncoderDecoderConfig, StackConfig
from flatlm.layers.kv_cache import CacheGeometry
from flatlm.utilities.checkpoints.store import TensorStore
from flatlm.utilities.kinds.kind import GraphPlan
from flatlm.utilities.kinds.lengths import cache_dtype, cache_length, read_lengths, require_steps_alone
from flatlm.utilities.weights.loader import LoadPlan, plan_slots
from flatlm.utilities.weights.slots import BlockSlots, Part, Rows, Slot, linear_slots, norm_slots
from flatlm.utilities.weights.tensor_names import TensorNames

if TYPE_CHECKING:
    from flatlm.utilities.exporter import ExportRequest

KIND = "encoder-decoder"
DEFAULT_ENCODER_LENGTHS = (128, 512)
ENDLESS = 1 << 20
"""Positions of a decoder that has no last one."""


class EncoderDecoders:
    """The kind of every `EncoderDecoderConfig`."""

    def load_plan(self, config: EncoderDecoderConfig, checkpoint: TensorStore, names: TensorNames) -> LoadPlan:
        """Raises CheckpointError."""
        ignored = [f"{names.lm_head}.weight"] if config.tied_head else []
        slots = list(encoder_decoder_slots(config, names))
        return plan_slots(slots, checkpoint, names, ignored=ignored, vocab_size=config.vocab_size)

    def build(self, config: EncoderDecoderConfig, length: int) -> EncoderDecoder:
        """For texts of up to `length` tokens, read or written."""
        encoder = min(length, config.encoder.max_positions or length)
        return build_on_meta(config, TwoLengths(encoder, CacheGeometry(min(length, config.decoder.max_positions or length))))

    def graph(self, config: EncoderDecoderConfig, request: "ExportRequest") -> GraphPlan:
        """`encode`, `encode_<T>` for each shorter length, and `decode`. Raises ExportError."""
        if request.output.suffix == ".litertlm":
            raise ExportError(
                f"{request.output}: LiteRT-LM runs no encoder with a decoder, so there is no .litertlm of one: export it to .tflite"
            )
        if request.lora is not None:
            raise ExportError(f"{request.lora}: adapters are merged into decoders alone: merge it with peft first (merge_and_unload)")
        if request.prefill_logits:
            raise ExportError("--prefill-logits is for decoders: an encoder's text has no logits")
        require_steps_alone(request, "an encoder with a decoder")
        lengths = read_lengths(request, DEFAULT_ENCODER_LENGTHS, config.encoder.max_positions)
        context = cache_length(request, config.decoder.max_positions or ENDLESS)
        geometry = CacheGeometry(context, 1, cache_dtype(request))
        written = sum(geometry.bytes(block.attention) for block in config.decoder.blocks)
        read = len(config.decoder.blocks) * CacheGeometry(lengths[-1]).bytes(config.cross)
        graph = EncoderDecoderGraph(config, TwoLengths(lengths[-1], geometry), lengths[:-1])
        return GraphPlan(graph, lengths, context, written + read, geometry.dtype, _facts(config, lengths))


def encoder_decoder_slots(config: EncoderDecoderConfig, names: TensorNames) -> Iterator[Slot]:
    """Every parameter of the model with its source tensors, in the model's order. `names` are the decoder's."""
    assert names.encoder is not None
    table = (config.vocab_size, config.embedding_dim)
    yield Slot("embedding.weight", (Part(f"{names.embedding}.weight", table),))
    if not config.shared_embedding:
        yield Slot("encoder_embedding.weight", (Part(f"{names.encoder.embedding}.weight", table),))
    yield from _stack("encoder", config, config.encoder, names.encoder)
    yield from _stack("decoder", config, config.decoder, names)
    if not config.tied_head:
        yield Slot("lm_head.weight", (Part(f"{names.lm_head}.weight", table),))
    if config.logits_bias:
        yield Slot("logits.bias", (Part(str(names.logits_bias), (1, config.vocab_size)),))


def _stack(side: str, config: EncoderDecoderConfig, stack: StackConfig, names: TensorNames) -> Iterator[Slot]:
    width = config.embedding_dim
    if stack.position_embedding is not None:
        rows = Part(f"{names.position_embedding}.weight", (stack.position_embedding.rows, width))
        yield Slot(f"{side}.position_embedding.weight", (rows,))
    if stack.embedding_norm is not None:
        yield from norm_slots(f"{side}.embedding_norm", str(names.embedding_norm), stack.embedding_norm, width, names)
    if stack.relative_bias is not None:
        heads = stack.blocks[0].attention.num_query_heads
        yield Slot(f"{side}.relative.bias", (Part(f"{names.relative_bias}.weight", (stack.relative_bias.buckets, heads)),))
    for layer, block in enumerate(stack.blocks):
        yield from BlockSlots(block, names, layer, width, f"{side}.blocks.{layer}")
        if side == "decoder":
            yield from _cross(config, names, layer)
    if stack.final_norm is not None:
        yield from norm_slots(f"{side}.final_norm", names.final_norm, stack.final_norm, width, names)


def _cross(config: EncoderDecoderConfig, names: TensorNames, layer: int) -> Iterator[Slot]:
    cross, width, prefix = config.cross, config.embedding_dim, f"decoder.blocks.{layer}.cross"
    queries, keys = cross.num_query_heads * cross.head_dim, cross.num_kv_heads * cross.head_dim

    def rows(field: str, count: int) -> Rows:
        return Rows(str(getattr(names, field)).format(layer), count)

    yield from norm_slots(f"{prefix}.attention_norm", str(names.pre_cross_norm).format(layer), config.cross_norm, width, names)
    bias = cross.qkv_bias
    yield from linear_slots(f"{prefix}.attention.query", [rows("cross_query_proj", queries)], width, names, bias=bias)
    both = [rows("cross_key_proj", keys), rows("cross_value_proj", keys)]
    yield from linear_slots(f"{prefix}.attention.key_value", both, width, names, bias=bias)
    yield from linear_slots(f"{prefix}.attention.output", [rows("cross_output_proj", width)], queries, names, bias=cross.output_bias)


def _facts(config: EncoderDecoderConfig, lengths: tuple[int, ...]) -> dict[str, Any]:
    """What the manifest says of it: the runner reads the tokens that frame a text from there."""
    writing = config.writing
    return {
        "kind": KIND,
        "encoder_len": lengths[-1],
        "decoder_start_token_id": writing.start,
        "eos_token_ids": list(writing.ends),
        "pad_token_id": writing.pad,
        "forced_bos_token_id": writing.forced_first,
        "forced_eos_token_id": writing.forced_last,
    }
