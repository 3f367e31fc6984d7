"""A toy language model, made in seconds: exported by litert-torch with FlatLM's conventions, and computed in torch without a cache."""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flatlm.utilities.tokenizing.vocabulary import Vocabulary
from tests.compiles import SharedCompiler

V, D, K, H, S, LAYERS = 41, 16, 2, 8, 48, 2
"""Vocabulary, width, heads, width of a head, cache slots, layers."""
EOS = 7


@torch.library.custom_op("toy::write", mutates_args=())
def write(cache: Tensor, update: Tensor, starts: list[Tensor]) -> Tensor:
    return cache.clone()


@write.register_fake
def _(cache: Tensor, update: Tensor, starts: list[Tensor]) -> Tensor:
    return torch.empty_like(cache)


class Toy(nn.Module):
    """Attention and nothing else; every token sees itself and those before it."""

    def __init__(self, *, seed: int, prefill_logits: bool) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=random) / shape[-1] ** 0.5, requires_grad=False)

        self.prefill_logits = prefill_logits
        self.tokens = nn.Parameter(torch.randn(V, D, generator=random), requires_grad=False)
        self.places = nn.Parameter(torch.randn(S, D, generator=random), requires_grad=False)
        self.qkv = nn.ParameterList(weight(3 * K * H, D) for _ in range(LAYERS))
        self.output = nn.ParameterList(weight(D, K * H) for _ in range(LAYERS))
        self.head = weight(V, D)

    def _heads(self, x: Tensor, layer: int) -> tuple[Tensor, ...]:
        """Queries, keys and values, each [1, K, T, H]."""
        return (x @ self.qkv[layer].T).reshape(1, -1, 3, K, H).permute(2, 0, 3, 1, 4).unbind()

    def forward(self, tokens: Tensor, input_pos: Tensor, **caches: Tensor) -> dict[str, Tensor]:
        x = self.tokens[tokens] + self.places[input_pos][None]
        mask = torch.where(torch.arange(S)[None] <= input_pos[:, None], 0.0, -1e9)
        zero, first = torch.zeros((), dtype=torch.int32), input_pos[0].to(torch.int32)
        out = {}
        for i in range(LAYERS):
            q, k, v = self._heads(x, i)
            k = torch.ops.toy.write(caches[f"kv_cache_k_{i}"], k, [zero, zero, first, zero])
            v = torch.ops.toy.write(caches[f"kv_cache_v_{i}"], v.transpose(-1, -2), [zero, zero, zero, first])
            weights = torch.softmax(q @ k.transpose(-1, -2) / H**0.5 + mask, -1)
            x = x + (weights @ v.transpose(-1, -2)).permute(0, 2, 1, 3).reshape(1, -1, K * H) @ self.output[i].T
            out |= {f"kv_cache_k_{i}": k, f"kv_cache_v_{i}": v}
        if tokens.shape[1] == 1 or self.prefill_logits:
            out["logits"] = x @ self.head.T
        return out

    def reference(self, ids: Sequence[int]) -> np.ndarray:
        """The logits [n, V] after each id of a text, at once."""
        n = len(ids)
        x = self.tokens[torch.tensor(ids)][None] + self.places[:n]
        mask = torch.full((n, n), float("-inf")).triu(1)
        for i in range(LAYERS):
            q, k, v = self._heads(x, i)
            y = torch.softmax(q @ k.transpose(-1, -2) / H**0.5 + mask, -1) @ v
            x = x + y.permute(0, 2, 1, 3).reshape(1, n, K * H) @ self.output[i].T
        return (x @ self.head.T)[0].numpy()


def lower_write() -> None:
    """Tell litert-torch what `toy::write` becomes."""
    from litert_converter.mlir.dialects import stablehlo
    from litert_torch.backend import lowerings

    @lowerings.lower(torch.ops.toy.write)
    def _(context: Any, cache: Any, update: Any, starts: Any) -> Any:
        return stablehlo.dynamic_update_slice(cache, update, starts)


def export_toy(path: Path, toy: Toy, prefill: Sequence[int], *, decode: bool = True) -> Path:
    """The same toy is converted once, for all workers."""
    weights = [value.numpy().tobytes() for value in toy.state_dict().values()]
    key = (tuple(prefill), decode, toy.prefill_logits, weights)
    return SharedCompiler.compiles.file(path, partial(_convert_toy, toy, prefill, decode), *key)


def _convert_toy(toy: Toy, prefill: Sequence[int], decode: bool, path: Path) -> None:
    import litert_torch

    lower_write()
    caches = {
        f"kv_cache_{kind}_{i}": torch.zeros(shape) for i in range(LAYERS) for kind, shape in (("k", (1, K, S, H)), ("v", (1, K, H, S)))
    }
    converter: Any = litert_torch
    for length in [*prefill, *([1] if decode else [])]:
        tokens, positions = torch.zeros(1, length, dtype=torch.int32), torch.arange(length, dtype=torch.int32)
        name = f"prefill_{length}" if length > 1 else "decode"
        converter = converter.signature(name, toy, sample_kwargs={"tokens": tokens, "input_pos": positions, **caches})
    converter.convert().export(str(path))


class Letters:
    """A tokenizer of single characters: token 0 is "!", 1 is the one after it, ..."""

    eos_ids = (EOS,)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(tuple(chr(33 + token).encode() for token in range(V)), frozenset([EOS]), self.encode)

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 33 for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(33 + token) for token in ids)

    def stream_decoder(self, context: Sequence[int] = ()) -> "LateLetters":
        return LateLetters()


class LateLetters:
    """Gives each character one token late, as a decoder that waits for the rest of a character does."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, token_id: int) -> str:
        ready, self._held = self._held, chr(33 + token_id)
        return ready

    def finish(self) -> str:
        return self._held
