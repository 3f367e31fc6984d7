"""Which signatures a file has, and where its manifest is. Data only: who asks for them need not load the compiler."""

from collections.abc import Sequence
from dataclasses import dataclass

MANIFEST_KEY = "flatlm.manifest"
"""The metadata entry that holds the manifest, as JSON."""

POSITION_IDS, PREFIX = PLACE_INPUTS = ("position_ids", "prefix")
"""What a file that fills blanks takes beside tokens and input_pos: int32 [2, T] (each token's place; its place within its blank), int32 [1]
(the context's length): see `layers.infilling.Places`."""


@dataclass(frozen=True)
class SignatureSpec:
    """A signature to export: `prefill_<T>` or `decode`, its number of tokens T, and whether it returns logits (of every position)."""

    name: str
    tokens: int
    logits: bool


def signature_specs(prefill_lengths: Sequence[int], *, prefill_logits: bool) -> list[SignatureSpec]:
    """The field's names: `prefill_<T>` for each length, then `decode`."""
    prefills = [SignatureSpec(f"prefill_{length}", length, prefill_logits) for length in sorted(set(prefill_lengths))]
    return [*prefills, SignatureSpec("decode", 1, True)]
