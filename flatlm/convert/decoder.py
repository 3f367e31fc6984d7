"""How a `Decoder` is taken apart for the compiler, and which signatures are stamped from its parts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flatlm.convert.compile import Piece, compile_pieces
from flatlm.convert.graphs import by_cache
from flatlm.convert.signatures import PLACE_INPUTS, SignatureSpec
from flatlm.convert.stamp import SignaturePlan, Step, stamp
from flatlm.errors import ExportError
from flatlm.layers.attention import StepContext
from flatlm.layers.block import Block
from flatlm.layers.config import BlockConfig, CacheDtype, MixtureConfig, ModelConfig
from flatlm.layers.infilling import Places, context_places
from flatlm.layers.kv_cache import (
    Cache,
    CacheGeometry,
    CacheSlots,
    KVCache,
    Placement,
    QuantizedCache,
    RingSlots,
    cache_names,
    empty_cache,
    empty_caches,
    place,
)
from flatlm.layers.mixture import Mixture
from flatlm.layers.model import ContextKinds, Decoder, build_on_meta


def stamp_decoder(config: ModelConfig, geometry: CacheGeometry, specs: Sequence[SignatureSpec]) -> Any:
    """Compile each distinct piece once and stamp all signatures: a model object in which weights are still named calls."""
    pieces, plans = list[Piece](), list[SignaturePlan]()
    for caches, own in by_cache(geometry, specs):
        pieces += decoder_pieces(build_on_meta(replace(config, blocks=config.block_kinds), caches), own)
        plans += decoder_plans(config, caches, own)
    return stamp(compile_pieces(pieces), plans)


def decoder_pieces(model: Decoder, specs: Sequence[SignatureSpec]) -> list[Piece]:
    """Prologue, every block kind and epilogue, for each signature's number of tokens."""
    pieces = []
    for spec in specs:
        pieces.append(_prologue(model, spec))
        for kind in range(len(model.config.block_kinds)):
            pieces += _block(model, spec, kind)
        if spec.logits:
            x = torch.zeros(1, spec.tokens, model.config.embedding_dim)
            pieces.append(Piece(f"{spec.name}/epilogue", lambda x: {"logits": model.epilogue(x)}, {"x": x}))
    return pieces


def decoder_plans(config: ModelConfig, geometry: CacheGeometry, specs: Sequence[SignatureSpec]) -> list[SignaturePlan]:
    """The stamping plan of each signature."""
    kinds, contexts = config.block_kinds, ContextKinds(config, geometry)
    layers = empty_caches(config, geometry, device="meta")
    caches = [name for layer, cache in enumerate(layers) for name in cache_names(cache, layer)]
    plans = []
    for spec in specs:
        steps = [Step(f"{spec.name}/prologue")]
        for layer, block in enumerate(config.blocks):
            attention = block.attention
            rope, at = contexts.rope_index(attention), contexts.place_index(attention)
            bind = {"mask": f"mask_{contexts.mask_index(attention)}", **{name: f"{name}_{at}" for name in PLACE_NAMES}}
            bind |= {"cos": f"cos_{rope}", "sin": f"sin_{rope}"}
            bind |= dict(zip(cache_tensors(layers[layer]), cache_names(layers[layer], layer), strict=True))
            steps += _block_steps(f"{spec.name}/block_{kinds.index(block)}", layer, bind, block, conditional=spec.tokens == 1)
        if spec.logits:
            steps.append(Step(f"{spec.name}/epilogue"))
        given = ["tokens", "input_pos", *(PLACE_INPUTS if config.fills_blanks else ())]
        plans.append(SignaturePlan(spec.name, [*given, *caches], [*caches, *(["logits"] if spec.logits else [])], steps))
    return plans


class WholeDecoder(nn.Module):
    """One signature of a decoder as one module, for the generic path: the file's conventions, the model's own weights.

    Only with float32 caches: a smaller cache needs operators that only the linker writes.
    """

    weights_prefix = "model."
    """Recipes see the names of the decoder's weights (quantize/weight_names.py)."""

    def __init__(self, model: Decoder, spec: SignatureSpec) -> None:
        super().__init__()
        if model.geometry.dtype is not CacheDtype.FLOAT32:
            raise ExportError(f"the generic path has float32 caches only; {model.geometry.dtype} ones are written by stamp_decoder")
        self.model = model
        self.spec = spec

    def forward(self, tokens: Tensor, input_pos: Tensor, **rest: Tensor) -> dict[str, Tensor]:
        """From tokens [1, T] int32, input_pos [T] int32, kv_cache_k_<i>, kv_cache_v_<i> to the caches, and logits [1, T, V].

        Of a model that fills blanks also from position_ids [2, T] and prefix [1], int32.
        """
        given = [KVCache(rest[f"kv_cache_k_{i}"], rest[f"kv_cache_v_{i}"]) for i in range(len(self.model.blocks))]
        places = Places(*(rest[name] for name in PLACE_INPUTS)) if self.model.config.fills_blanks else None
        logits, updated = self.model(tokens, input_pos, given, places)
        out = {f"kv_cache_{part}_{i}": tensor for i, cache in enumerate(updated) for part, tensor in zip("kv", cache, strict=True)}
        return out | ({"logits": logits} if self.spec.logits else {})

    def sample_inputs(self) -> dict[str, Tensor]:
        """Inputs of the signature's shapes and dtypes."""
        caches = empty_caches(self.model.config, self.model.geometry)
        named = {f"kv_cache_{part}_{i}": tensor for i, cache in enumerate(caches) for part, tensor in zip("kv", cache, strict=True)}
        tokens, positions = torch.zeros(1, self.spec.tokens, dtype=torch.int32), torch.arange(self.spec.tokens, dtype=torch.int32)
        places = context_places(self.spec.tokens)._asdict() if self.model.config.fills_blanks else {}
        return {"tokens": tokens, "input_pos": positions, **places, **named}


PLACE_NAMES = ("slots_k", "slots_v", "ring")
"""A placement's tensors, between the prologue and the blocks."""


def _place_tensors(where: Placement) -> dict[str, Tensor]:
    return {"ring": where.source} if isinstance(where, RingSlots) else {"slots_k": where.k, "slots_v": where.v}


def _place_of(tensors: dict[str, Tensor]) -> Placement:
    return RingSlots(tensors["ring"]) if "ring" in tensors else CacheSlots(tensors["slots_k"], tensors["slots_v"])


def cache_tensors(cache: Cache) -> dict[str, Tensor]:
    """A cache's tensors, by what the blocks call them."""
    return {f"cache_{name}": tensor for name, tensor in cache._asdict().items()}


def cache_of(tensors: dict[str, Tensor]) -> Cache:
    kind = QuantizedCache if "cache_k_scale" in tensors else KVCache
    return kind(*(tensors[f"cache_{name}"] for name in kind._fields))


def _prologue(model: Decoder, spec: SignatureSpec) -> Piece:
    def call(tokens: Tensor, input_pos: Tensor, **places: Tensor) -> dict[str, Tensor]:
        x, contexts = model.prologue(tokens, input_pos, Places(**places) if places else None)
        out = {"x": x}
        for index, (cos, sin) in enumerate(contexts.ropes):
            out |= {f"cos_{index}": cos, f"sin_{index}": sin}
        out |= {f"mask_{index}": mask for index, mask in enumerate(contexts.masks)}
        for index, where in enumerate(contexts.places):
            out |= {f"{name}_{index}": tensor for name, tensor in _place_tensors(where).items()}
        return out

    inputs = {"tokens": torch.zeros(1, spec.tokens, dtype=torch.int32), "input_pos": torch.arange(spec.tokens, dtype=torch.int32)}
    if model.config.fills_blanks:
        inputs |= context_places(spec.tokens)._asdict()
    return Piece(f"{spec.name}/prologue", call, inputs)


def _block(model: Decoder, spec: SignatureSpec, kind: int) -> list[Piece]:
    """A block's piece; or the three that a mixture is made of, so that one expert is compiled, whatever their number."""
    config, attention = model.config.block_kinds[kind], model.config.block_kinds[kind].attention
    block = model.blocks[model.config.blocks.index(config)]
    assert isinstance(block, Block)
    slots = model.geometry.slots(attention)
    tokens = spec.tokens
    heads = () if attention.mask.alibi_slopes is None else (attention.num_query_heads,)
    inputs = {
        "x": torch.zeros(1, tokens, model.config.embedding_dim),
        "mask": torch.zeros(*heads, tokens, slots),
        **cache_tensors(empty_cache(attention, model.geometry)),
        **_place_tensors(place(torch.arange(tokens, dtype=torch.int32), slots, model.geometry.length)),
    }
    if attention.rope is not None:
        inputs |= {name: torch.zeros(tokens, 1, attention.head_dim) for name in ("cos", "sin")}

    def context(mask: Tensor, rest: dict[str, Tensor]) -> StepContext:
        return StepContext((rest["cos"], rest["sin"]) if "cos" in rest else None, mask, _place_of(rest))

    def whole(x: Tensor, mask: Tensor, **rest: Tensor) -> dict[str, Tensor]:
        x, cache = block(x, context(mask, rest), cache_of(rest))
        return {"x": x, **cache_tensors(cache)}

    mixture = block.feed_forward
    name = f"{spec.name}/block_{kind}"
    if not isinstance(mixture, Mixture):
        return [Piece(name, whole, inputs)]

    def attend(x: Tensor, mask: Tensor, **rest: Tensor) -> dict[str, Tensor]:
        x, read, cache = block.attend(x, context(mask, rest), cache_of(rest))
        weights = mixture.weights(read)
        out = {"x": x, "read": read, "mixed": read * 0.0, **cache_tensors(cache)}
        for expert in range(mixture.config.num_experts):
            out[f"weight_{expert}"] = weights[..., expert : expert + 1]
            if tokens == 1:
                out[f"chosen_{expert}"] = weights[0, 0, expert : expert + 1] > 0
        return out

    def expert(read: Tensor, weight: Tensor, mixed: Tensor) -> dict[str, Tensor]:
        return {"mixed": mixed + weight * mixture.experts[0](read)}

    def add(x: Tensor, mixed: Tensor) -> dict[str, Tensor]:
        return {"x": block.add(x, mixed)}

    width = (1, tokens, model.config.embedding_dim)
    return [
        Piece(name, attend, inputs),
        Piece(f"{name}/expert", expert, {"read": torch.zeros(width), "weight": torch.zeros(1, tokens, 1), "mixed": torch.zeros(width)}),
        Piece(f"{name}/add", add, {"x": torch.zeros(width), "mixed": torch.zeros(width)}),
    ]


def _block_steps(piece: str, layer: int, bind: dict[str, str], block: BlockConfig, *, conditional: bool) -> list[Step]:
    """`conditional`: experts that no token chose are not run."""
    steps = [Step(piece, layer, bind)]
    if isinstance(block.feed_forward, MixtureConfig):
        for index in range(block.feed_forward.num_experts):
            chosen = f"chosen_{index}" if conditional else None
            steps.append(Step(f"{piece}/expert", layer, {"weight": f"weight_{index}"}, index, chosen))
        steps.append(Step(f"{piece}/add", layer))
    return steps
