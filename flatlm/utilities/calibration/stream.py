"""A model run over calibration text a block at a time: the weights of one block in memory, and the activations between two."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flatlm.convert.weights import WeightSource
from flatlm.layers.block import Block
from flatlm.layers.config import ModelConfig
from flatlm.layers.kv_cache import CacheGeometry, KVCache
from flatlm.layers.linear import Linear
from flatlm.layers.mixture import Mixture
from flatlm.layers.model import build_on_meta

ROWS_AT_ONCE = 4
"""Rows of text that go through a block together."""


class ModelStream:
    """The pieces of a model, over rows of text of one length. `sources` are its parameters by name."""

    def __init__(self, config: ModelConfig, sources: Mapping[str, WeightSource], length: int) -> None:
        self.config, self.sources = config, sources
        self.model = build_on_meta(config, CacheGeometry(length))
        self.positions = torch.arange(length, dtype=torch.int32)
        self.contexts = self.model.contexts(self.positions)

    def embed(self, tokens: Tensor, rows: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """What the first block reads for tokens [N, T]: [N, T, D] float32. `rows` gives the embedding's rows for ids (default: its source's)."""
        ids, where = torch.unique(tokens, return_inverse=True)
        self.model.embedding.weight = nn.Parameter((rows or self.embedding_rows)(ids), requires_grad=False)
        if self.model.position_embedding is not None:
            self.model.position_embedding.weight = nn.Parameter(self.whole("position_embedding.weight"), requires_grad=False)
        with torch.inference_mode():
            return self.model.embed(where.to(torch.int32), self.positions)

    def embedding_rows(self, ids: Tensor) -> Tensor:
        """Rows of the embedding for ascending ids [n], float32 [n, D]."""
        source = self.sources["embedding.weight"]
        runs = torch.tensor_split(ids, torch.nonzero(ids.diff() > 1)[:, 0] + 1)
        return torch.cat([source.rows(int(run[0]), int(run[-1]) + 1).to(torch.float32) for run in runs])

    def whole(self, name: str) -> Tensor:
        """A parameter, float32, of its own shape."""
        source = self.sources[name]
        return source.rows(0, source.shape[0]).to(torch.float32)

    def block(self, layer: int) -> Block:
        """A block with its weights, float32."""
        with torch.device("meta"):
            block = Block(self.config.embedding_dim, self.config.blocks[layer]).eval()
        state = {name: self.whole(f"blocks.{layer}.{name}") for name, _ in block.named_parameters()}
        block.load_state_dict(state, assign=True)
        return block.requires_grad_(False)

    def through(self, block: Block, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The block over rows x [N, T, D], some at a time: which rows, and what becomes of them."""
        attention = block.config.attention
        context = self.model.kinds.context(self.contexts, attention)
        slots = self.model.geometry.slots(attention)
        for start in range(0, len(x), ROWS_AT_ONCE):
            rows = slice(start, min(start + ROWS_AT_ONCE, len(x)))
            with torch.inference_mode():
                yield rows, block(x[rows], context, KVCache.zeros(attention, batch=rows.stop - rows.start, slots=slots))[0]

    def run(self, block: Block, x: Tensor) -> Tensor:
        """The block over all rows, [N, T, D]."""
        out = torch.empty_like(x)
        for rows, result in self.through(block, x):
            out[rows] = result
        return out

    def head_inputs(self, x: Tensor, rows: slice) -> Tensor:
        """What the head reads of rows of the last block's output: after the final norm."""
        for name, parameter in self.model.final_norm.named_parameters():
            if parameter.is_meta:
                setattr(self.model.final_norm, name, nn.Parameter(self.whole(f"final_norm.{name}"), requires_grad=False))
        with torch.inference_mode():
            normed: Tensor = self.model.final_norm(x[rows])
        return normed


def linears(block: nn.Module) -> dict[str, Linear]:
    """The projections of a block by their names in it."""
    return {name: module for name, module in block.named_modules() if isinstance(module, Linear)}


def stages(block: Block) -> list[list[str]]:
    """The projections in the order in which they are reached, those that read nothing of one another together."""
    names = list(linears(block))
    feed_forward = [name for name in names if name.startswith("feed_forward.") and not name.endswith(".router")]
    first = [name for name in feed_forward if not name.endswith(".down")]
    return [["attention.qkv"], ["attention.output"], first, [name for name in feed_forward if name.endswith(".down")]]


class _Enough(Exception):
    """All inputs that were asked for have been seen."""


@contextmanager
def watch(block: Block, names: Sequence[str], see: Callable[[str, Tensor], None], *, stop: bool = True) -> Iterator[None]:
    """Within it, `see(name, inputs [n, C])` is told what each of the named projections reads; the block's run ends after the last.

    An expert's inputs are scaled by what the expert counts for each token, so that tokens that did not choose it are zeros.
    """
    found = linears(block)
    mixture = block.feed_forward if isinstance(block.feed_forward, Mixture) else None
    shares: list[Tensor] = []
    left = set[str]()

    def started(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert mixture is not None
        shares[:] = [mixture.weights(arguments[0])]

    def saw(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            inputs = arguments[0]
            if shares and ".experts." in name:
                inputs = inputs * shares[0][..., int(name.split(".")[2])][..., None]
            see(name, inputs.reshape(-1, inputs.shape[-1]))
            left.discard(name)
            if stop and not left:
                left.update(names)
                raise _Enough

        return hook

    left.update(names)
    handles = [found[name].register_forward_pre_hook(saw(name)) for name in names]
    if mixture is not None:
        handles.append(mixture.register_forward_pre_hook(started))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def observe(stream: ModelStream, block: Block, x: Tensor, names: Sequence[str], see: Callable[[str, Tensor], None]) -> None:
    """Run a block over rows x [N, T, D] as far as the named projections, and `see` what they read."""
    context = stream.model.kinds.context(stream.contexts, block.config.attention)
    slots = stream.model.geometry.slots(block.config.attention)
    with watch(block, names, see), torch.inference_mode():
        for start in range(0, len(x), ROWS_AT_ONCE):
            rows = x[start : start + ROWS_AT_ONCE]
            try:
                block(rows, context, KVCache.zeros(block.config.attention, batch=len(rows), slots=slots))
            except _Enough:
                continue
