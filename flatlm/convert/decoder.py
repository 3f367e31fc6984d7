"""How a `Decoder` is taken apart for the compiler, and which signatures are stamped from its parts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flatlm.convert.compile import Piece, compile_pieces
from flatlm.convert.signatures import SignatureSpec
from flatlm.convert.stamp import SignaturePlan, Step, stamp
from flatlm.layers.block import Block
from flatlm.layers.config import ModelConfig
from flatlm.layers.kv_cache import CacheSlots, KVCache, empty_caches
from flatlm.layers.model import Decoder, build_on_meta


def stamp_decoder(config: ModelConfig, cache_length: int, specs: Sequence[SignatureSpec]) -> Any:
    """Compile each distinct piece once and stamp all signatures: a model object in which weights are still named calls."""
    kinds_only = build_on_meta(replace(config, blocks=config.block_kinds), cache_length=cache_length)
    return stamp(compile_pieces(decoder_pieces(kinds_only, specs)), decoder_plans(config, specs))


def decoder_pieces(model: Decoder, specs: Sequence[SignatureSpec]) -> list[Piece]:
    """Prologue, every block kind and epilogue, for each signature's number of tokens."""
    pieces = []
    for spec in specs:
        pieces.append(_prologue(model, spec))
        pieces += [_block(model, spec, kind) for kind in range(len(model.config.block_kinds))]
        if spec.logits:
            x = torch.zeros(1, spec.tokens, model.config.embedding_dim)
            pieces.append(Piece(f"{spec.name}/epilogue", lambda x: {"logits": model.epilogue(x)}, {"x": x}))
    return pieces


def decoder_plans(config: ModelConfig, specs: Sequence[SignatureSpec]) -> list[SignaturePlan]:
    """The stamping plan of each signature."""
    kinds, ropes = config.block_kinds, config.ropes
    caches = [f"kv_cache_{part}_{layer}" for layer in range(len(config.blocks)) for part in "kv"]
    plans = []
    for spec in specs:
        steps = [Step(f"{spec.name}/prologue")]
        for layer, block in enumerate(config.blocks):
            rope = ropes.index(block.attention.rope)
            bind = {"cos": f"cos_{rope}", "sin": f"sin_{rope}", "cache_k": f"kv_cache_k_{layer}", "cache_v": f"kv_cache_v_{layer}"}
            steps.append(Step(f"{spec.name}/block_{kinds.index(block)}", layer, bind))
        if spec.logits:
            steps.append(Step(f"{spec.name}/epilogue"))
        plans.append(SignaturePlan(spec.name, ["tokens", "input_pos", *caches], [*caches, *(["logits"] if spec.logits else [])], steps))
    return plans


class WholeDecoder(nn.Module):
    """One signature of a decoder as one module, for the generic path: the file's conventions, the model's own weights."""

    def __init__(self, model: Decoder, spec: SignatureSpec) -> None:
        super().__init__()
        self.model = model
        self.spec = spec

    def forward(self, tokens: Tensor, input_pos: Tensor, **caches: Tensor) -> dict[str, Tensor]:
        """From tokens [1, T] int32, input_pos [T] int32, kv_cache_k_<i>, kv_cache_v_<i> to the caches, and logits [1, T, V]."""
        given = [KVCache(caches[f"kv_cache_k_{i}"], caches[f"kv_cache_v_{i}"]) for i in range(len(self.model.blocks))]
        logits, updated = self.model(tokens, input_pos, given)
        out = {f"kv_cache_{part}_{i}": tensor for i, cache in enumerate(updated) for part, tensor in zip("kv", cache, strict=True)}
        return out | ({"logits": logits} if self.spec.logits else {})

    def sample_inputs(self) -> dict[str, Tensor]:
        """Inputs of the signature's shapes and dtypes."""
        caches = empty_caches(self.model.config, length=self.model.cache_length)
        named = {f"kv_cache_{part}_{i}": tensor for i, cache in enumerate(caches) for part, tensor in zip("kv", cache, strict=True)}
        tokens, positions = torch.zeros(1, self.spec.tokens, dtype=torch.int32), torch.arange(self.spec.tokens, dtype=torch.int32)
        return {"tokens": tokens, "input_pos": positions, **named}


def _prologue(model: Decoder, spec: SignatureSpec) -> Piece:
    def call(tokens: Tensor, input_pos: Tensor) -> dict[str, Tensor]:
        x, context = model.prologue(tokens, input_pos)
        out = {"x": x, "mask": context.mask, "slots_k": context.slots.k, "slots_v": context.slots.v}
        for index, (cos, sin) in enumerate(context.ropes):
            out |= {f"cos_{index}": cos, f"sin_{index}": sin}
        return out

    tokens = torch.zeros(1, spec.tokens, dtype=torch.int32)
    return Piece(f"{spec.name}/prologue", call, {"tokens": tokens, "input_pos": torch.arange(spec.tokens, dtype=torch.int32)})


def _block(model: Decoder, spec: SignatureSpec, kind: int) -> Piece:
    config = model.config.block_kinds[kind]
    block = model.blocks[model.config.blocks.index(config)]
    assert isinstance(block, Block)

    def call(
        x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, slots_k: Tensor, slots_v: Tensor, cache_k: Tensor, cache_v: Tensor
    ) -> dict[str, Tensor]:
        x, cache = block(x, (cos, sin), mask, CacheSlots(slots_k, slots_v), KVCache(cache_k, cache_v))
        return {"x": x, "cache_k": cache.k, "cache_v": cache.v}

    cache = KVCache.zeros(config.attention, batch=1, length=model.cache_length)
    inputs = {
        "x": torch.zeros(1, spec.tokens, model.config.embedding_dim),
        "cos": torch.zeros(spec.tokens, 1, config.attention.rope.head_dim),
        "sin": torch.zeros(spec.tokens, 1, config.attention.rope.head_dim),
        "mask": torch.zeros(spec.tokens, model.cache_length),
        "slots_k": torch.zeros(4, dtype=torch.int32),
        "slots_v": torch.zeros(4, dtype=torch.int32),
        "cache_k": cache.k,
        "cache_v": cache.v,
    }
    return Piece(f"{spec.name}/block_{kind}", call, inputs)
