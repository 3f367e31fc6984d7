"""masklm: what may stand in the place of each mask of a text."""

from dataclasses import dataclass
from typing import ClassVar

from flatlm.errors import RuntimeFileError, TokenizerError
from flatlm.tasks.reading import ReadingTask, softmax

MASKS = ("[MASK]", "<mask>")
"""What a mask is called where the tokenizer's settings do not say."""


@dataclass(frozen=True)
class Candidate:
    """A token that may stand there, as it is written by itself."""

    token: str
    token_id: int
    probability: float


@dataclass(frozen=True)
class MaskedPlace:
    """A mask, at the characters [start, end) of the text, and the likeliest tokens for it."""

    start: int
    end: int
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Filled:
    """`text`: with the likeliest candidate in each place, each chosen by itself."""

    text: str
    places: tuple[MaskedPlace, ...]


class MaskTask(ReadingTask):
    """A masked language model."""

    options: ClassVar[tuple[str, ...]] = ("top", "truncate")

    def predict(self, text: str, *, top: int = 5, truncate: bool = False) -> Filled:  # type: ignore[override]
        """The `top` candidates for each mask in the text. RuntimeFileError where it has none."""
        mask, mask_id = self.mask
        if top < 1:
            raise RuntimeFileError(f"the {top} likeliest candidates were asked for; 1 is the least")
        encoded = self.encode(text, truncate=truncate)
        masked = [place for place, token in enumerate(encoded.ids) if token == mask_id]
        if not masked:
            raise RuntimeFileError(f"the text has no {mask} that could be filled: {text[:40]!r}")
        logits = self.read(encoded, "logits")
        places, written, after = [], "", 0
        for place in masked:
            probabilities = softmax(logits[place])
            best = probabilities.argsort(kind="stable")[::-1][:top]
            candidates = tuple(Candidate(self.tokenizer.decode([token]).strip(), int(token), float(probabilities[token])) for token in best)
            found = encoded.offsets[place]
            start = text.index(mask, found[0])  # a tokenizer may count the space before a mask to it
            places.append(MaskedPlace(start, start + len(mask), candidates))
            written += text[after:start] + candidates[0].token
            after = start + len(mask)
        return Filled(written + text[after:], tuple(places))

    @property
    def mask(self) -> tuple[str, int]:
        """The tokenizer's mask, and its id. TokenizerError where it has none."""
        named = self.tokenizer.settings.special_tokens.get("mask_token")
        for name in ([] if named is None else [named.content]) + list(MASKS):
            if (found := self.tokenizer.token_id(name)) is not None:
                return name, found
        raise TokenizerError(f"{self.tokenizer.source}: has no mask token, neither by its settings nor {' or '.join(MASKS)}")
