"""What a compiler is asked for: a graph, as data. Nothing here loads the compiler; `stamp` does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flatlm.convert.signatures import SignatureSpec
from flatlm.layers.config import MixtureConfig, ModelConfig
from flatlm.layers.kv_cache import CacheGeometry

ROOM_A_BLOCK = 48 << 10
"""Bytes kept in the root for a block of a signature: a Llama block takes 20 kilobytes."""
ROOM_AN_EXPERT = 6 << 10
"""The same for each expert of a mixture."""


class Graph(Protocol):
    """All signatures of a file, without weights. Hashable, since equal graphs are compiled once; pickled to the compiler's process.

    The graph follows from it alone: which weights there are and what is computed, not their schemes, ranges or values.
    """

    @property
    def signatures(self) -> tuple[str, ...]:
        """Their names, in the file's order."""
        ...

    @property
    def room(self) -> int:
        """Bytes that are kept for it in the root of a large file: about twice what it takes."""
        ...

    def stamp(self) -> Any:
        """Compile it: a model object in which weights are still named calls."""
        ...


@dataclass(frozen=True)
class StepGraph:
    """Signatures by the decoders' conventions, whatever they are compiled from. The configuration has `blocks`."""

    config: Any
    geometry: CacheGeometry
    specs: tuple[SignatureSpec, ...]

    @property
    def signatures(self) -> tuple[str, ...]:
        return tuple(spec.name for spec in self.specs)

    @property
    def room(self) -> int:
        return (1 + len(self.specs) * len(self.config.blocks)) * ROOM_A_BLOCK


def by_cache(geometry: CacheGeometry, specs: Sequence[SignatureSpec]) -> list[tuple[CacheGeometry, list[SignatureSpec]]]:
    """The signatures over caches of each length, and those caches: first the longest, which `geometry` says."""
    lengths = dict.fromkeys(spec.cache_length for spec in specs)
    return [
        (
            geometry if length is None else geometry._replace(length=length, context=geometry.positions),
            [spec for spec in specs if spec.cache_length == length],
        )
        for length in lengths
    ]


@dataclass(frozen=True)
class DecoderGraph(StepGraph):
    """The signatures of a `layers.model.Decoder`."""

    config: ModelConfig

    @property
    def room(self) -> int:
        mixtures = (block.feed_forward for block in self.config.blocks if isinstance(block.feed_forward, MixtureConfig))
        experts = sum(mixture.num_experts for mixture in mixtures)
        return super().room + len(self.specs) * experts * ROOM_AN_EXPERT

    def stamp(self) -> Any:
        from flatlm.convert.decoder import stamp_decoder

        return stamp_decoder(self.config, self.geometry, self.specs)
