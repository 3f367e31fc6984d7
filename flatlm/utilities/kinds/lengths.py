"""The lengths that a request asks for, checked, and what follows from them for models by the decoders' conventions."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from flatlm.convert.graphs import Graph
from flatlm.convert.signatures import SignatureSpec, signature_specs
from flatlm.errors import ExportError
from flatlm.layers.config import AttentionConfig, CacheDtype
from flatlm.layers.kv_cache import CacheGeometry
from flatlm.utilities.kinds.kind import GraphPlan

if TYPE_CHECKING:
    from flatlm.utilities.exporter import ExportRequest

Config = TypeVar("Config")

DEFAULT_CACHE_LENGTH = 1024
DEFAULT_PREFILL_LENGTHS = (16, 128)


def cache_length(request: "ExportRequest", max_positions: int) -> int:
    """Slots of the KV cache. Raises ExportError where the model was not made for so many, or a text would not fit."""
    length = request.kv_cache_len or min(DEFAULT_CACHE_LENGTH, max_positions)
    if request.kv_cache_len is not None and request.kv_cache_len < 2:
        raise ExportError(f"--kv-cache-len {request.kv_cache_len}: the cache needs at least 2 slots")
    if length > max_positions:
        raise ExportError(f"--kv-cache-len {length} is longer than the {max_positions} positions that the model was made for")
    return length


def prefill_lengths(request: "ExportRequest", cache: int) -> tuple[int, ...]:
    """Tokens of the signatures that read several at once, ascending. Raises ExportError where one does not fit the cache."""
    if request.prefill_lengths is None:
        return tuple(length for length in DEFAULT_PREFILL_LENGTHS if length <= cache) or (cache,)
    lengths = tuple(sorted(set(request.prefill_lengths)))
    if not lengths or lengths[0] < 2:
        raise ExportError(f"--prefill {','.join(map(str, lengths))}: lengths are whole numbers of at least 2 (decode takes one token)")
    if lengths[-1] > cache:
        raise ExportError(f"--prefill {lengths[-1]} is longer than the cache of {cache} slots: lower it, or raise --kv-cache-len")
    return lengths


def read_lengths(request: "ExportRequest", defaults: Iterable[int], longest: int | None) -> tuple[int, ...]:
    """Tokens of an encoder's signatures, ascending: by default `defaults`, cut to the `longest` that it can read (None: any).

    Raises ExportError for lengths that it cannot.
    """
    if request.prefill_lengths is None:
        return tuple(sorted({length if longest is None else min(length, longest) for length in defaults}))
    lengths = tuple(sorted(set(request.prefill_lengths)))
    if not lengths or lengths[0] < 1:
        raise ExportError(f"--prefill {','.join(map(str, lengths))}: an encoder's lengths are whole numbers of at least 1")
    if longest is not None and lengths[-1] > longest:
        raise ExportError(f"--prefill {lengths[-1]} is longer than the {longest} positions of the model's encoder")
    return lengths


def cache_dtype(request: "ExportRequest") -> CacheDtype:
    """What the caches hold. Raises ExportError for what is not known."""
    try:
        return CacheDtype(request.kv_cache_dtype)
    except ValueError:
        raise ExportError(f"--kv-cache-dtype {request.kv_cache_dtype}: use {', '.join(CacheDtype)}") from None


def step_plan(
    make: Callable[[Config, CacheGeometry, tuple[SignatureSpec, ...]], Graph],
    config: Config,
    attentions: Iterable[AttentionConfig],
    request: "ExportRequest",
    facts: Mapping[str, Any] | None = None,
) -> GraphPlan:
    """`prefill_<T>` for each length, and `decode`, over caches for each layer's attention: what `make` makes of them.

    The configuration has `max_positions`. Raises ExportError.
    """
    length = cache_length(request, config.max_positions)  # type: ignore[attr-defined]
    lengths = prefill_lengths(request, length)
    geometry = CacheGeometry(length, max(lengths), cache_dtype(request))
    specs = tuple(signature_specs(lengths, prefill_logits=request.prefill_logits))
    cache_bytes = sum(geometry.bytes(attention) for attention in attentions)
    return GraphPlan(make(config, geometry, specs), lengths, length, cache_bytes, geometry.dtype, facts or {})
