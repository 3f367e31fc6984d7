"""Causal attention over the layer's KV cache."""

from typing import Any

from torch import Tensor, nn

from flatlm.authoring.modules.keywords import refuse_unknown
from flatlm.authoring.step import CacheHandle
from flatlm.layers.attention import attention
from flatlm.layers.config import AttentionConfig, MaskConfig


class Attention(nn.Module):
    """softmax(q k^T * scale + mask) v, causal, with grouped queries (Ainslie et al. 2023) and an optional window, over a static cache.

    `scale`: of the scores (None: head_size^-1/2); `sliding_window`: a token sees itself and so many tokens less one before it;
    `logit_softcapping`: scores become cap * tanh(scores / cap). Other keywords of lmdeploy's are taken where they ask for nothing else;
    all else is a TypeError.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float | None = None,
        num_kv_heads: int | None = None,
        v_head_size: int | None = None,
        *,
        sliding_window: int | None = None,
        logit_softcapping: float | None = None,
        alibi: bool = False,
        causal: bool = True,
        **keywords: Any,
    ) -> None:
        super().__init__()
        refuse_unknown(Attention, keywords, learnable_sink=False, block_sparse_size=1)
        if alibi or not causal or v_head_size not in (None, head_size):
            raise ValueError(
                f"Attention(alibi={alibi}, causal={causal}, v_head_size={v_head_size}): causal attention without ALiBi, whose values are "
                f"as wide as its keys ({head_size}), is supported"
            )
        window = sliding_window if sliding_window and sliding_window > 0 else None
        keys = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads % keys:
            raise ValueError(f"num_kv_heads = {keys} does not divide num_heads = {num_heads}")
        softcap = logit_softcapping or None
        self.config = AttentionConfig(num_heads, keys, head_size, None, mask=MaskConfig(window), scale=scale, softcap=softcap)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, k_cache: Any, v_cache: Any = None, attn_metadata: Any = None, **keywords: Any
    ) -> Tensor:
        """Queries [T, N, H] or [1, T, N, H], keys and values of K heads: the same shape as the queries.

        `k_cache` and `v_cache` are `past_key_values[layer][0]` and `[1]`; the step's keys and values are written there. What tokens may
        see is known to them: `attn_metadata` is not needed. Raises ValueError for other shapes.
        """
        refuse_unknown(Attention.forward, keywords, k_scales_zeros=None, v_scales_zeros=None, s_aux=None, nsa_indices=None)
        if not isinstance(k_cache, CacheHandle) or (v_cache is not None and getattr(v_cache, "layer", None) is not k_cache.layer):
            raise TypeError("Attention takes past_key_values[layer][0] and past_key_values[layer][1] of one layer as they were given")
        layer, config = k_cache.layer, self.config
        self._require_shapes(query, key, value)
        q = query.reshape(1, -1, config.num_query_heads, config.head_dim)
        k, v = (x.reshape(1, -1, config.num_kv_heads, config.head_dim) for x in (key, value))
        if not layer.attend(config):
            return query
        mask, place = layer.step.kind_of(config)
        layer.cache = layer.cache.update(k, v, place)
        return attention(q, layer.cache, mask, config).reshape(query.shape)

    def _require_shapes(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        heads, keys, width = self.config.num_query_heads, self.config.num_kv_heads, self.config.head_dim
        given = [list(each.shape) for each in (query, key, value)]
        alone = all(len(shape) == 3 or (len(shape) == 4 and shape[0] == 1) for shape in given)
        ends = [shape[-2:] for shape in given] == [[heads, width], [keys, width], [keys, width]]
        if not alone or not ends or len({shape[-3] for shape in given}) > 1:
            raise ValueError(
                f"Attention takes queries [T, {heads}, {width}] and keys and values [T, {keys}, {width}], or the same behind a 1; "
                f"it was given {given[0]}, {given[1]} and {given[2]}"
            )
