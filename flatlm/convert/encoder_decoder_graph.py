"""What a compiler is asked for, of an encoder with a decoder: data. Nothing here loads the compiler; `stamp` does.

Signatures, whatever the model: `encode`, for the longest text S_e, and `encode_<T>` for shorter ones, take `tokens` int32 [1, T] and
`mask` float32 [1, T] (1: a token, 0: padding), and give for each layer i of the decoder `cross_k_<i>` [1, K, S_e, H] and `cross_v_<i>`
[1, K, H, S_e], whose slots after T are zero. `decode` takes `tokens` int32 [1, 1], `input_pos` int32 [1], `encoder_mask` float32
[1, S_e], those, and the caches `kv_cache_k_<i>` [1, K, S, H] and `kv_cache_v_<i>` [1, K, H, S] of what was written; it gives the
caches, and `logits` [1, 1, V].
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flatlm.convert.graphs import ROOM_A_BLOCK
from flatlm.layers.encoder_decoder_config import EncoderDecoderConfig

if TYPE_CHECKING:
    from flatlm.layers.encoder_decoder import TwoLengths

ENCODE, DECODE = "encode", "decode"


@dataclass(frozen=True)
class EncoderDecoderGraph:
    """The signatures of a `layers.encoder_decoder.EncoderDecoder`. `shorter`: the T of `encode_<T>`, ascending."""

    config: EncoderDecoderConfig
    lengths: "TwoLengths"
    shorter: tuple[int, ...] = ()

    @property
    def encoders(self) -> dict[str, int]:
        """The signatures that read, from the shortest, with their tokens."""
        return {**{f"{ENCODE}_{length}": length for length in self.shorter}, ENCODE: self.lengths.encoder}

    @property
    def signatures(self) -> tuple[str, ...]:
        return (*self.encoders, DECODE)

    @property
    def room(self) -> int:
        layers = len(self.config.encoder.blocks) + len(self.config.decoder.blocks)
        return (2 + len(self.signatures) * (layers + 2)) * ROOM_A_BLOCK

    def stamp(self) -> Any:
        from flatlm.convert.encoder_decoder import stamp_encoder_decoder

        return stamp_encoder_decoder(self)
