"""A model run over calibration text a block at a time: the weights of one block in memory, and the activations between two."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from flatlm.convert.weights import WeightSource
from flatlm.layers.attention import StepContext
from flatlm.layers.block import Block
from flatlm.layers.config import ModelConfig
from flatlm.layers.infilling import context_places
from flatlm.layers.kv_cache import CacheGeometry, KVCache
from flatlm.layers.linear import Linear
from flatlm.layers.mixture import Mixture
from flatlm.layers.model import build_on_meta
from flatlm.utilities.calibration.sources import read_rows, read_whole

TABLES = ("embedding.weight", "position_embedding.weight", "block_position_embedding.weight")
"""The weights that a text's first state is made of, where a model has them."""
ROWS_AT_ONCE = 4
"""Rows of text that go through a block together."""


class ModelStream:
    """The pieces of a model, over rows of text of one length T. `sources` are its parameters by name, read when they are needed.

    Reading raises CheckpointError for a weight that is not finite.
    """

    def __init__(self, config: ModelConfig, sources: Mapping[str, WeightSource], length: int) -> None:
        self.config, self.sources = config, sources
        self.model = build_on_meta(config, CacheGeometry(length))
        self.positions = torch.arange(length, dtype=torch.int32)
        self.places = context_places(length) if config.fills_blanks else None  # each row of text is a context without a blank
        self.contexts = self.model.contexts(self.positions, self.places)

    def embed(self, tokens: Tensor) -> Tensor:
        """What the first block reads for tokens [N, T]: [N, T, D] float32. Only the rows that occur are read."""
        ids, where = torch.unique(tokens, return_inverse=True)
        self.model.embedding.weight = _frozen(self._embedding_rows(ids))
        if self.model.position_embedding is not None:
            self.model.position_embedding.weight = _frozen(self.whole("position_embedding.weight"))
        if self.model.block_position_embedding is not None:
            self.model.block_position_embedding.weight = _frozen(self.whole("block_position_embedding.weight"))
        with torch.inference_mode():
            return self.model.embed(where.to(torch.int32), self.positions, self.places)

    def whole(self, name: str) -> Tensor:
        """A parameter, float32, of its own shape."""
        return read_whole(self.sources[name])

    def block(self, layer: int) -> Block:
        """A block with its weights, float32."""
        with torch.device("meta"):
            block = Block(self.config.embedding_dim, self.config.blocks[layer]).eval()
        state = {name: self.whole(f"blocks.{layer}.{name}") for name, _ in block.named_parameters()}
        block.load_state_dict(state, assign=True)
        return block.requires_grad_(False)

    def run(self, block: Block, x: Tensor, *, before: Callable[[slice], None] = lambda rows: None) -> Tensor:
        """What a block makes of x [N, T, D], some rows at a time; `before` is told which, each time."""
        out = torch.empty_like(x)
        for rows in row_slices(len(x)):
            before(rows)
            out[rows] = self._step(block, x[rows])
        return out

    def inputs(self, block: Block, x: Tensor, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """For some rows of x [N, T, D] after the other, what the named projections of a block read: [rows, T, C] each.

        The block runs as far as the last of them. An expert's inputs are scaled by what it counts for each token, so that those of tokens
        that did not choose it are zeros, and an error counts as much as it does in the sum.
        """
        for rows in row_slices(len(x)):
            seen: dict[str, Tensor] = {}
            handles = _watch(block, names, seen)
            try:
                self._step(block, x[rows])
            except _Enough:
                pass
            finally:
                for handle in handles:
                    handle.remove()
            yield seen

    def head_inputs(self, x: Tensor) -> Iterator[Tensor]:
        """What the head reads of the last block's output x [N, T, D], some rows after the other: after the final norm."""
        for name, parameter in self.model.final_norm.named_parameters():
            if parameter.is_meta:
                setattr(self.model.final_norm, name, _frozen(self.whole(f"final_norm.{name}")))
        for rows in row_slices(len(x)):
            with torch.inference_mode():
                yield self.model.final_norm(x[rows])

    def _step(self, block: Block, x: Tensor) -> Tensor:
        attention = block.config.attention
        context: StepContext = self.model.kinds.context(self.contexts, attention)
        cache = KVCache.zeros(attention, batch=len(x), slots=self.model.geometry.slots(attention))
        with torch.inference_mode():
            out: Tensor = block(x, context, cache)[0]
        return out

    def _embedding_rows(self, ids: Tensor) -> Tensor:
        """Rows of the embedding for ascending ids [n], float32 [n, D]."""
        source = self.sources["embedding.weight"]
        runs = torch.tensor_split(ids, torch.nonzero(ids.diff() > 1)[:, 0] + 1)
        return torch.cat([read_rows(source, int(run[0]), int(run[-1]) + 1) for run in runs])


def row_slices(rows: int) -> Iterator[slice]:
    """ROWS_AT_ONCE rows after the other."""
    for start in range(0, rows, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, rows))


def linears(block: nn.Module) -> dict[str, Linear]:
    """The projections of a block by their names in it."""
    return {name: module for name, module in block.named_modules() if isinstance(module, Linear)}


class _Enough(Exception):  # noqa: N818 - not an error
    """All inputs that were asked for have been seen."""


def _watch(block: Block, names: Sequence[str], seen: dict[str, Tensor]) -> list[torch.utils.hooks.RemovableHandle]:
    """Hooks that put into `seen` what the named projections read, and end the run once all have been reached."""
    found = linears(block)
    shares: list[Tensor] = []

    def saw(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            inputs = arguments[0]
            if shares and ".experts." in name:
                inputs = inputs * shares[0][..., int(name.split(".")[2])][..., None]
            seen[name] = inputs
            if len(seen) == len(names):
                raise _Enough

        return hook

    handles = [found[name].register_forward_pre_hook(saw(name)) for name in names]
    if isinstance(block.feed_forward, Mixture):
        mixture = block.feed_forward

        def started(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            shares[:] = [mixture.weights(arguments[0])]

        handles.append(mixture.register_forward_pre_hook(started))
    return handles


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)
