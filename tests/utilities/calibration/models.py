"""What the calibration's tests share: families' tiny models as sources, random and padded text, logits."""

import functools
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from flatlm.convert.in_memory import InMemory
from flatlm.convert.weights import WeightSource
from flatlm.layers.config import ModelConfig
from flatlm.layers.kv_cache import CacheGeometry, KVCache, empty_caches
from flatlm.layers.model import Decoder
from flatlm.utilities.calibration.text import CalibrationText
from flatlm.utilities.example import build_model
from tests.examples.cases import ALL
from tests.examples.references import make_reference
from tests.models import random_decoder, tiny_config

CASES = {str(case): case for case in ALL}
TOKENS = 24


@functools.cache
def family(name: str) -> Decoder:
    """A case of tests/examples by its name, random, for TOKENS tokens."""
    with torch.inference_mode(False), tempfile.TemporaryDirectory() as directory:
        make_reference(CASES[name], Path(directory))
        return build_model(directory, kv_cache_max_len=TOKENS)


@functools.cache
@torch.inference_mode(False)
def tiny(*, dim: int = 64, **how: object) -> Decoder:
    """A model of tests/models.py whose weights fit blocks of 32, with sizes of channels as unlike as trained models have them."""
    model = random_decoder(tiny_config(dim=dim, heads=8, kv_heads=4, **how), cache_length=TOKENS)  # type: ignore[arg-type]
    size = torch.logspace(-1, 1, dim)[torch.randperm(dim, generator=torch.Generator().manual_seed(9))]
    for name, parameter in model.named_parameters():
        if name.endswith("_norm.weight") and len(parameter) == dim:
            parameter.data = parameter.data * (0.1 if name.startswith("final") else size)
    return model


def sources_of(model: Decoder) -> dict[str, WeightSource]:
    return {name: InMemory(parameter.data) for name, parameter in model.named_parameters()}


def doubled(config: ModelConfig, sources: Mapping[str, WeightSource], length: int = TOKENS) -> Decoder:
    """The eager model in float64 with the sources' values."""
    model = Decoder(config, CacheGeometry(length)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.data = sources[name].rows(0, sources[name].shape[0]).double()
    model._tables = [(cos.double(), sin.double()) for cos, sin in model._tables]
    return model


def random_tokens(config: ModelConfig, rows: int = 6, length: int = TOKENS, seed: int = 4) -> Tensor:
    return torch.randint(0, config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


@torch.inference_mode()
def logits(model: Decoder, tokens: Tensor) -> Tensor:
    """[N, T, V] of rows [N, T] of tokens."""
    dtype = model.embedding.weight.dtype
    caches = empty_caches(model.config, model.geometry, batch=len(tokens))
    caches = [KVCache(cache.k.to(dtype), cache.v.to(dtype)) for cache in caches]
    found: Tensor = model(tokens, torch.arange(tokens.shape[1], dtype=torch.int32), caches)[0]
    return found


def random_text(config: ModelConfig, rows: int = 6, *, padded: bool = True) -> CalibrationText:
    """Rows of random tokens; the last ones are shorter, and padded with whatever."""
    tokens = random_tokens(config, rows)
    lengths = torch.full((rows,), TOKENS)
    if padded:
        lengths[-2:] = torch.tensor([TOKENS // 2, 3])
    return CalibrationText(tokens, lengths)


def other_padding(text: CalibrationText) -> CalibrationText:
    """The same text with other tokens behind it."""
    return replace(text, tokens=torch.where(text.valid, text.tokens, 1))
