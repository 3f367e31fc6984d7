"""Which signatures a file has, and where its manifest is. Data only: who asks for them need not load the compiler."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

MANIFEST_KEY = "flatlm.manifest"
"""The metadata entry that holds the manifest, as JSON."""

POSITION_IDS, PREFIX = PLACE_INPUTS = ("position_ids", "prefix")
"""What a file that fills blanks takes beside tokens and input_pos: int32 [2, T] (each token's place; its place within its blank), int32 [1]
(the context's length): see `layers.infilling.Places`."""


PREFILL, VERIFY = "prefill", "verify"
"""How the names of signatures begin that read several tokens at once: without logits unless asked to, and with each token's."""
DECODE = "decode"
_SMALLER = re.compile(r"kv(\d+)_(.+)")


@dataclass(frozen=True)
class SignatureSpec:
    """A signature to export: its name, its number of tokens T, and whether it returns logits (of every position)."""

    name: str
    tokens: int
    logits: bool
    cache_length: int | None = None
    """S of its caches; None: the file's longest."""


def signature_specs(
    prefill_lengths: Sequence[int], *, prefill_logits: bool, verify_length: int | None = None, cache_lengths: Sequence[int] = ()
) -> list[SignatureSpec]:
    """The field's names: `prefill_<T>` for each length, `verify_<T>` if asked for, then `decode`, over the longest caches.

    The same over caches of each shorter length S, named `kv<S>_prefill_<T>` and so on: names that runtimes which know one length pass over.
    """
    verify = [SignatureSpec(f"{VERIFY}_{verify_length}", verify_length, True)] if verify_length else []
    prefills = [SignatureSpec(f"{PREFILL}_{length}", length, prefill_logits) for length in sorted(set(prefill_lengths))]
    longest = [*prefills, *verify, SignatureSpec(DECODE, 1, True)]
    return longest + [
        replace(spec, name=f"kv{length}_{spec.name}", cache_length=length)
        for length in sorted(set(cache_lengths))[:-1]
        for spec in longest
        if spec.tokens <= length
    ]


def read_name(name: str) -> tuple[str, int | None]:
    """A signature's name as it is over the longest caches, and S where its caches are shorter."""
    found = _SMALLER.fullmatch(name)
    return (name, None) if found is None else (found[2], int(found[1]))
