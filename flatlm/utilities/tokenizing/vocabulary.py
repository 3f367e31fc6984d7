"""A tokenizer's tokens as bytes: what each adds to a text, which text itself cannot say of half a character."""

import codecs
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flatlm.errors import TokenizerError


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Of each id, from 0: the bytes of a text that the token stands for; of a special token its name, of an id that is none nothing.

    A text's beginning may be decoded otherwise: some tokenizers leave out its leading space.
    """

    tokens: tuple[bytes, ...]
    special: frozenset[int]
    """Ids that are no text: special tokens, and ids without a token."""
    encode: Callable[[str], Sequence[int]]
    """A text's tokens as the tokenizer has them, perhaps with a space before it."""
    exact: bool = True
    """False: the text of tokens is not made of these bytes, one after the other."""

    def token_bytes(self, token_id: int) -> bytes:
        """Nothing for an id beyond the vocabulary, such as a padded model may produce."""
        return self.tokens[token_id] if 0 <= token_id < len(self.tokens) else b""

    def text(self, token_id: int) -> str:
        """With U+FFFD for bytes that are no whole character."""
        return self.token_bytes(token_id).decode(errors="replace")

    def spell(self, text: str) -> list[int]:
        """Tokens that stand for exactly this text: the tokenizer's own where they do, else as few as there can be.

        Raises TokenizerError where no tokens do.
        """
        own, wanted = list(self.encode(text)), text.encode()
        if not self.special.intersection(own) and b"".join(map(self.token_bytes, own)) == wanted:
            return own
        fewest: list[tuple[float, int]] = [(0, 0)]  # of each beginning of the text: how many tokens, and the last of them
        for end in range(1, len(wanted) + 1):
            starts = range(max(0, end - self._longest), end)
            found = ((fewest[start][0] + 1, self._ids.get(wanted[start:end])) for start in starts)
            fewest.append(min(((count, token) for count, token in found if token is not None), default=(math.inf, 0)))
        if math.isinf(fewest[-1][0]):
            raise TokenizerError(f"the vocabulary has no tokens for {text[:40]!r}, so it cannot be written")
        ids, end = list[int](), len(wanted)
        while end:
            ids.append(fewest[end][1])
            end -= len(self.tokens[ids[-1]])
        return ids[::-1]

    @cached_property
    def _ids(self) -> Mapping[bytes, int]:
        return {token: i for i, token in reversed(list(enumerate(self.tokens))) if token and i not in self.special}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids), default=0)


class ByteDecoder:
    """Text from tokens as they come: their bytes, and no more. Special tokens are left out, and no piece splits a character."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that is certain now and was not before."""
        return "" if token_id in self._vocabulary.special else self._decoder.decode(self._vocabulary.token_bytes(token_id))

    def finish(self) -> str:
        """U+FFFD for a character that stayed unfinished."""
        return self._decoder.decode(b"", final=True)


def byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in byte-level BPE (Radford et al. 2019): itself where it is printed, else one from U+0100 on."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


class TokenReader:
    """What the tokens of a tokenizer.json stand for, by its decoder. `exact`: whether that is known."""

    def __init__(self, decoder: Mapping[str, Any] | None) -> None:
        steps = list(_steps(decoder))
        kinds = {str(step.get("type")) for step in steps}
        self._letters = byte_letters() if "ByteLevel" in kinds else None
        self._single_bytes = "ByteFallback" in kinds
        replaced = [(_pattern(step), str(step.get("content", ""))) for step in steps if step.get("type") == "Replace"]
        spaces = [(str(step.get("replacement", "▁")), " ") for step in steps if step.get("type") == "Metaspace"]
        self._replaced = [(old, new) for old, new in [*replaced, *spaces] if old is not None]
        known = {"ByteLevel", "Fuse"} if self._letters else {"ByteFallback", "Replace", "Metaspace", "Fuse", "Strip"}
        cuts_ends = any(step.get("stop") for step in steps if step.get("type") == "Strip")
        self.exact = bool(kinds) and kinds <= known and len(self._replaced) == len(replaced) + len(spaces) and not cuts_ends

    def read(self, token: str) -> bytes:
        if self._letters is not None:
            if all(letter in self._letters for letter in token):
                return bytes(self._letters[letter] for letter in token)
            return token.encode()  # as the library has it: added tokens are text already
        if self._single_bytes and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes.fromhex(token[3:5])
        for old, new in self._replaced:
            token = token.replace(old, new)
        return token.encode()


def _steps(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if decoder is None:
        return
    if decoder.get("type") == "Sequence":
        for step in decoder.get("decoders", ()):
            yield from _steps(step)
    else:
        yield decoder


def _pattern(step: Mapping[str, Any]) -> str | None:
    """What a step replaces; None for a regular expression."""
    found = step.get("pattern", {}).get("String")
    return None if found is None else str(found)
