"""The signatures of an encoder, as data: `encode_<T>` for each length of text, compiled a kind of block at a time.

Inputs: `tokens` int32 [1, T]; `mask` float32 [1, T], 1 for a real token and 0 for padding; `token_types` int32 [1, T] where the model
has types. Outputs by the head: `logits`, `hidden_states` (and `pooled`), or `embedding`. Layers that share a block share its weights.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flatlm.convert.graphs import ROOM_A_BLOCK
from flatlm.layers.encoder_config import EncoderConfig

if TYPE_CHECKING:
    from torch import Tensor

    from flatlm.convert.compile import Piece
    from flatlm.convert.stamp import SignaturePlan
    from flatlm.layers.encoder import Encoder


@dataclass(frozen=True)
class EncoderGraph:
    """One signature for each of `lengths`, in tokens."""

    config: EncoderConfig
    lengths: tuple[int, ...]

    @property
    def signatures(self) -> tuple[str, ...]:
        return tuple(f"encode_{length}" for length in self.lengths)

    @property
    def room(self) -> int:
        return (1 + len(self.lengths)) * (1 + len(self.config.layers)) * ROOM_A_BLOCK

    def stamp(self) -> Any:
        """Prologue, one block of each kind, and epilogue are compiled once for each length, and stamped as often as there are layers."""
        from dataclasses import replace

        from flatlm.convert.compile import compile_pieces
        from flatlm.convert.stamp import stamp
        from flatlm.layers.encoder import build_on_meta

        kinds = self.config.block_kinds
        model = build_on_meta(replace(self.config, blocks=kinds, layers=tuple(range(len(kinds)))))
        pieces = [piece for name, length in zip(self.signatures, self.lengths, strict=True) for piece in _pieces(model, name, length)]
        return stamp(compile_pieces(pieces), [_plan(self.config, name) for name in self.signatures])


def _pieces(model: "Encoder", name: str, length: int) -> "list[Piece]":
    import torch

    from flatlm.convert.compile import Piece
    from flatlm.layers.attention import StepContext
    from flatlm.layers.block import Block
    from flatlm.layers.kv_cache import Uncached

    def prologue(tokens: "Tensor", mask: "Tensor", token_types: "Tensor | None" = None) -> "dict[str, Tensor]":
        x, scores_mask = model.prologue(tokens, mask, token_types)
        return {"x": x, "scores_mask": scores_mask}

    def block_of(block: Block) -> "Any":
        def call(x: "Tensor", scores_mask: "Tensor") -> "dict[str, Tensor]":
            return {"x": block(x, StepContext(None, scores_mask, None), Uncached())[0]}

        return call

    def ids() -> "Tensor":
        return torch.zeros(1, length, dtype=torch.int32)

    def x() -> "Tensor":
        return torch.zeros(1, length, model.config.width)

    texts = {"tokens": ids(), "mask": torch.ones(1, length)} | ({"token_types": ids()} if model.config.token_types else {})
    pieces = [Piece(f"{name}/prologue", prologue, texts)]
    for kind, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        inputs = {"x": x(), "scores_mask": torch.zeros(1, 1, 1, length)}
        pieces.append(Piece(f"{name}/block_{kind}", block_of(block), inputs))
    pieces.append(Piece(f"{name}/epilogue", model.epilogue, {"x": x(), "mask": torch.ones(1, length)}))
    return pieces


def _plan(config: EncoderConfig, name: str) -> "SignaturePlan":
    from flatlm.convert.stamp import SignaturePlan, Step

    kinds = config.block_kinds
    layers = [Step(f"{name}/block_{kinds.index(config.blocks[index])}", index) for index in config.layers]
    inputs = ["tokens", "mask", *(["token_types"] if config.token_types else [])]
    return SignaturePlan(name, inputs, list(config.outputs), [Step(f"{name}/prologue"), *layers, Step(f"{name}/epilogue")])
