"""How an `EncoderDecoder` is taken apart for the compiler, and which signatures are stamped from its parts."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flatlm.convert.compile import Piece, compile_pieces
from flatlm.convert.decoder import cache_of, cache_tensors
from flatlm.convert.encoder_decoder_graph import DECODE, EncoderDecoderGraph
from flatlm.convert.stamp import SignaturePlan, Step, stamp
from flatlm.layers.attention import StepContext
from flatlm.layers.block import Block
from flatlm.layers.cross_attention import CrossBlock
from flatlm.layers.encoder_decoder import EncoderDecoder, build_on_meta
from flatlm.layers.kv_cache import CacheSlots, KVCache, Uncached, cache_names, empty_cache, place


def stamp_encoder_decoder(graph: EncoderDecoderGraph) -> Any:
    """Compile each distinct piece once and stamp all signatures: a model object in which weights are still named calls."""
    config = graph.config
    encoder, decoder = (replace(stack, blocks=stack.block_kinds) for stack in (config.encoder, config.decoder))
    model = build_on_meta(replace(config, encoder=encoder, decoder=decoder), graph.lengths)
    pieces = [piece for name, tokens in graph.encoders.items() for piece in _encode_pieces(model, name, tokens)]
    skeleton = compile_pieces([*pieces, *_decode_pieces(model)])
    return stamp(skeleton, [*(_encode_plan(graph, name) for name in graph.encoders), _decode_plan(graph)])


def _encode_pieces(model: EncoderDecoder, name: str, tokens: int) -> list[Piece]:
    """Prologue, every kind of the encoder's blocks, what ends the stack, and a decoder layer's keys and values."""
    config = model.config
    x = {"x": torch.zeros(1, tokens, config.embedding_dim)}
    relative = config.encoder.relative_bias is not None
    added = (config.encoder.blocks[0].attention.num_query_heads, tokens) if relative else (1, 1)

    def prologue(tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        first, added = model.encoder_prologue(tokens, mask)
        return {"x": first, "added": added}

    pieces = [Piece(f"{name}/prologue", prologue, {"tokens": torch.zeros(1, tokens, dtype=torch.int32), "mask": torch.ones(1, tokens)})]
    for kind, block in enumerate(model.encoder.blocks):
        assert isinstance(block, Block)
        inputs = {"x": x["x"].clone(), "added": torch.zeros(1, *added, tokens)}
        pieces.append(Piece(f"{name}/block_{kind}", _encoder_block(block), inputs))
    pieces.append(Piece(f"{name}/end", lambda x: {"encoded": model.encoder.end(x)}, x))

    def cross(encoded: Tensor) -> dict[str, Tensor]:
        return _cross_tensors(model.cross(model.decoder.blocks[0], encoded))  # that of all layers: only weights' names differ

    return [*pieces, Piece(f"{name}/cross", cross, {"encoded": torch.zeros(1, tokens, config.embedding_dim)})]


def _encoder_block(block: Block) -> Any:
    def call(x: Tensor, added: Tensor) -> dict[str, Tensor]:
        return {"x": block(x, StepContext(None, added, None), Uncached())[0]}

    return call


def _decode_pieces(model: EncoderDecoder) -> list[Piece]:
    """Prologue, every kind of the decoder's blocks, and epilogue, for one token."""
    config, length = model.config, model.lengths.decoder.length
    position = torch.zeros(1, dtype=torch.int32)

    def prologue(tokens: Tensor, input_pos: Tensor, encoder_mask: Tensor) -> dict[str, Tensor]:
        x, mask = model.decoder_prologue(tokens, input_pos)
        where = place(input_pos, length, length)
        assert isinstance(where, CacheSlots)
        return {"x": x, "mask": mask, "hidden": model.hidden(encoder_mask), "slots_k": where.k, "slots_v": where.v}

    inputs = {
        "tokens": torch.zeros(1, 1, dtype=torch.int32),
        "input_pos": position,
        "encoder_mask": torch.ones(1, model.lengths.encoder),
    }
    pieces = [Piece(f"{DECODE}/prologue", prologue, inputs)]
    for kind, (block, cache) in enumerate(zip(model.decoder.blocks, model.empty_caches(), strict=True)):
        assert isinstance(block, CrossBlock)
        attention = config.decoder.blocks[kind].attention
        heads = () if config.decoder.relative_bias is None else (attention.num_query_heads,)
        given = {
            "x": torch.zeros(1, 1, config.embedding_dim),
            "mask": torch.zeros(*heads, 1, length),
            "hidden": torch.zeros(1, 1, 1, model.lengths.encoder),
            "slots_k": torch.zeros(4, dtype=torch.int32),
            "slots_v": torch.zeros(4, dtype=torch.int32),
            **_cross_tensors(KVCache.zeros(config.cross, batch=1, slots=model.lengths.encoder)),
            **cache_tensors(cache),
        }
        pieces.append(Piece(f"{DECODE}/block_{kind}", _decoder_block(block), given))
    x = torch.zeros(1, 1, config.embedding_dim)
    return [*pieces, Piece(f"{DECODE}/epilogue", lambda x: {"logits": model.epilogue(x)}, {"x": x})]


def _decoder_block(block: CrossBlock) -> Any:
    def call(x: Tensor, mask: Tensor, hidden: Tensor, **rest: Tensor) -> dict[str, Tensor]:
        context = StepContext(None, mask, CacheSlots(rest["slots_k"], rest["slots_v"]))
        cross = KVCache(rest["cross_k"], rest["cross_v"])
        x, cache = block.decode(x, context, cache_of(rest), (cross, hidden))
        return {"x": x, **cache_tensors(cache)}

    return call


def _encode_plan(graph: EncoderDecoderGraph, name: str) -> SignaturePlan:
    encoder, layers = graph.config.encoder, range(len(graph.config.decoder.blocks))
    steps = [Step(f"{name}/prologue")]
    steps += [Step(f"{name}/block_{encoder.block_kinds.index(block)}", layer) for layer, block in enumerate(encoder.blocks)]
    steps.append(Step(f"{name}/end"))
    steps += [Step(f"{name}/cross", layer, _cross_names(layer)) for layer in layers]
    return SignaturePlan(name, ["tokens", "mask"], [own for layer in layers for own in _cross_names(layer).values()], steps)


def _decode_plan(graph: EncoderDecoderGraph) -> SignaturePlan:
    decoder = graph.config.decoder
    layers = [empty_cache(block.attention, graph.lengths.decoder, device="meta") for block in decoder.blocks]
    cross = [name for layer in range(len(layers)) for name in _cross_names(layer).values()]
    caches = [name for layer, cache in enumerate(layers) for name in cache_names(cache, layer)]
    steps = [Step(f"{DECODE}/prologue")]
    for layer, (block, cache) in enumerate(zip(decoder.blocks, layers, strict=True)):
        bind = _cross_names(layer) | dict(zip(cache_tensors(cache), cache_names(cache, layer), strict=True))
        steps.append(Step(f"{DECODE}/block_{decoder.block_kinds.index(block)}", layer, bind))
    steps.append(Step(f"{DECODE}/epilogue"))
    return SignaturePlan(DECODE, ["tokens", "input_pos", "encoder_mask", *cross, *caches], [*caches, "logits"], steps)


def _cross_tensors(cache: KVCache) -> dict[str, Tensor]:
    return {"cross_k": cache.k, "cross_v": cache.v}


def _cross_names(layer: int) -> dict[str, str]:
    """A layer's keys and values of the encoder's output: what the pieces call them, and the file."""
    return {name: f"{name}_{layer}" for name in ("cross_k", "cross_v")}
