"""Tiny models with every parameter random, and ways to run what was exported from them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from flatlm.convert.graphs import DecoderGraph
from flatlm.convert.in_memory import InMemory
from flatlm.convert.link import link_and_write
from flatlm.convert.signatures import SignatureSpec
from flatlm.convert.weights import WeightLayout
from flatlm.convert.worker import Compiler, CompilerProcess
from flatlm.layers.config import (
    Activation,
    AttentionConfig,
    BlockConfig,
    CacheDtype,
    FeedForwardConfig,
    MaskConfig,
    ModelConfig,
    NormConfig,
    NormKind,
    RopeConfig,
)
from flatlm.layers.kv_cache import CacheGeometry, KVCache, QuantizedCache, cache_names, empty_caches
from flatlm.layers.model import Decoder
from flatlm.quantize.recipes import Recipe, get_recipe


def tiny_config(
    *,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    tied: bool = False,
    bias: bool = False,
    plain: bool = False,
    vocab: int = 96,
    dim: int = 32,
    window: int | None = None,
) -> ModelConfig:
    """`window`: of every first of two blocks; the others see the whole context.

    `plain`: layer norms and feed-forwards without a gate in every second block, so that there are two kinds of block.
    """
    attention = AttentionConfig(heads, kv_heads, 8, RopeConfig(8), qkv_bias=bias, output_bias=bias)
    block = BlockConfig(attention, FeedForwardConfig(64, bias=bias), NormConfig(eps=1e-5), NormConfig(eps=1e-6))
    local = replace(block, attention=replace(attention, mask=MaskConfig(window))) if window else block
    norm = NormConfig(NormKind.LAYER, eps=1e-5, bias=True)
    other = BlockConfig(attention, FeedForwardConfig(48, Activation.GELU_TANH, gated=False, bias=True), norm, norm) if plain else block
    return ModelConfig(vocab, dim, (local, other) * (layers // 2) + (local,) * (layers % 2), max_positions=96, tied_head=tied)


def random_decoder(
    config: ModelConfig,
    *,
    cache_length: int = 32,
    longest_step: int | None = None,
    seed: int = 0,
    cache: CacheDtype = CacheDtype.FLOAT32,
) -> Decoder:
    """An eager model; norms, biases and all are random."""
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(config, CacheGeometry(cache_length, longest_step, cache))
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.3 * noise if name.endswith("norm.weight") else 0.25 * noise
    return model.eval().requires_grad_(False)


def export_fast(
    model: Decoder, specs: list[SignatureSpec], path: Path, recipe: str | Recipe = "none", compiler: Compiler | None = None
) -> Path:
    """Compile, stamp and link an eager model's configuration, with the eager model's weights."""
    sources = {name: InMemory(parameter.data) for name, parameter in model.named_parameters()}
    layout = WeightLayout(sources, get_recipe(recipe) if isinstance(recipe, str) else recipe)
    with path.open("w+b") as file, compiler or CompilerProcess() as compiler:
        compiler.submit(DecoderGraph(model.config, model.geometry, tuple(specs)))
        link_and_write(compiler.result(), layout, file.fileno())
    return path


class Signatures:
    """A file in LiteRT's interpreter, a signature a call: the plainest judge, with nothing of ours between."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(str(path), num_threads=1)

    def run(self, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {key: value.copy() for key, value in self.interpreter.get_signature_runner(name)(**inputs).items()}


def random_inputs(model: Decoder, tokens: int, *, start: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Inputs for a signature of that many tokens at `start`, the cache full of noise."""
    rng = np.random.default_rng(seed)
    inputs = {
        "tokens": rng.integers(0, model.config.vocab_size, (1, tokens)).astype(np.int32),
        "input_pos": np.arange(start, start + tokens, dtype=np.int32),
    }
    for layer, cache in enumerate(empty_caches(model.config, model.geometry)):
        for name, tensor in zip(cache_names(cache, layer), cache, strict=True):
            noise = rng.standard_normal(tensor.shape, dtype=np.float32)
            if name.endswith("_scale"):  # of keys and values that are about as large as the noise
                noise = np.abs(noise) * (1 if "_k_" in name else 64)
            inputs[name] = noise.astype(np.float16) if tensor.dtype == torch.float16 else noise
            if tensor.dtype == torch.int8:
                inputs[name] = (40 * noise).clip(-127, 127).astype(np.int8)
    return inputs


@torch.inference_mode()
def run_eager(model: Decoder, inputs: dict[str, np.ndarray], *, logits: bool) -> dict[str, np.ndarray]:
    """What a signature of the eager model gives for the same inputs, by the same names."""
    given, caches = {name: torch.from_numpy(value) for name, value in inputs.items()}, []
    for layer, cache in enumerate(empty_caches(model.config, model.geometry)):
        kind = QuantizedCache if isinstance(cache, QuantizedCache) else KVCache
        caches.append(kind(*(given[name] for name in cache_names(cache, layer))))
    out, updated = model(given["tokens"], given["input_pos"], caches)
    found = {"logits": out.numpy()} if logits else {}
    for layer, cache in enumerate(updated):
        found |= {name: tensor.numpy() for name, tensor in zip(cache_names(cache, layer), cache, strict=True)}
    return found


def largest_difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name].astype(np.float32) - b[name].astype(np.float32)).max()) for name in a)
