"""The lengths that a request asks for, checked."""

from typing import TYPE_CHECKING

from flatlm.errors import ExportError
from flatlm.layers.config import CacheDtype

if TYPE_CHECKING:
    from flatlm.utilities.exporter import ExportRequest

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


def cache_dtype(request: "ExportRequest") -> CacheDtype:
    """What the caches hold. Raises ExportError for what is not known."""
    try:
        return CacheDtype(request.kv_cache_dtype)
    except ValueError:
        raise ExportError(f"--kv-cache-dtype {request.kv_cache_dtype}: use {', '.join(CacheDtype)}") from None
