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
    return cache_lengths(request, max_positions)[-1]


def cache_lengths(request: "ExportRequest", max_positions: int) -> tuple[int, ...]:
    """Slots of the caches that a text moves through, ascending: one length, unless more were asked for. Raises as `cache_length` does."""
    if request.kv_cache_len is None:
        return (min(DEFAULT_CACHE_LENGTH, max_positions),)
    asked = (request.kv_cache_len,) if isinstance(request.kv_cache_len, int) else request.kv_cache_len
    lengths = tuple(sorted(set(asked)))
    if not lengths or lengths[0] < 2:
        raise ExportError(f"--kv-cache-len {','.join(map(str, lengths)) or 'of no length'}: the cache needs at least 2 slots")
    if lengths[-1] > max_positions:
        raise ExportError(f"--kv-cache-len {lengths[-1]} is longer than the {max_positions} positions that the model was made for")
    return lengths


def verify_length(request: "ExportRequest", cache: int) -> int | None:
    """Tokens of the signature that checks a draft's, if there is to be one. Raises ExportError where it does not fit the cache."""
    length = request.verify_length
    if length is not None and not 2 <= length <= cache:
        raise ExportError(f"--verify-len {length}: at least 2 tokens are checked at once, and no more than the cache's {cache}")
    return length


def require_steps_alone(request: "ExportRequest", what: str) -> None:
    """ExportError for what only files by the decoders' conventions have: several caches' lengths, a check of drafts."""
    if request.verify_length is not None:
        raise ExportError(f"--verify-len {request.verify_length}: {what} has no draft that is checked: leave it out")
    if request.kv_cache_len is not None and not isinstance(request.kv_cache_len, int):
        raise ExportError(f"--kv-cache-len {','.join(map(str, request.kv_cache_len))}: {what} has caches of one length")


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
    """`prefill_<T>` for each length, `verify_<T>`, and `decode`, over caches for each layer's attention: what `make` makes of them.

    The configuration has `max_positions`. Raises ExportError.
    """
    caches = cache_lengths(request, config.max_positions)  # type: ignore[attr-defined]
    length = caches[-1]
    lengths, verify = prefill_lengths(request, length), verify_length(request, length)
    geometry = CacheGeometry(length, max(*lengths, verify or 1), cache_dtype(request))
    specs = signature_specs(lengths, prefill_logits=request.prefill_logits, verify_length=verify, cache_lengths=caches)
    cache_bytes = sum(geometry.bytes(attention) for attention in attentions)
    smaller = {"kv_cache_lens": list(caches)} if caches[1:] else {}
    return GraphPlan(make(config, geometry, tuple(specs)), lengths, length, cache_bytes, geometry.dtype, {**(facts or {}), **smaller})
