"""A text's tokens, and where in the text each of them is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EncodedText:
    """The ids of a text, or of a pair of texts, with the special tokens around them; all lists are as long as `ids`.

    `type_ids`: which part of a pair a token counts to. `offsets`: the characters [start, end) of its text that it covers. `sequence`: 0
    for the first text, 1 for the second, None for a special token that was added.
    """

    ids: tuple[int, ...]
    type_ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    sequence: tuple[int | None, ...]

    @property
    def framed(self) -> tuple[int, int]:
        """How many tokens were added before the text, and how many behind it. Of one text, not of a pair."""
        own = [place for place, which in enumerate(self.sequence) if which is not None]
        return (own[0], len(self.ids) - own[-1] - 1) if own else (len(self.ids), 0)
